"""Talking with models from a terminal: who speaks, what was said, how it is asked for and shown.

`loop` asks `terminal` for a person's words, `commands` for what a `/word` means, `answering` for answers, and
`display` to show them. `generating` does the same for prompts of a file, with nobody watching.
"""
