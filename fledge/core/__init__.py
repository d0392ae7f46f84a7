"""The ground: errors, configuration, disk, artifacts, processes, console. Knows nothing of language models."""

__version__ = "0.1.0"
