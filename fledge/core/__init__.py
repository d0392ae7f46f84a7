"""The ground: errors, configuration, disk, artifacts, processes, console. Knows nothing of language models."""
