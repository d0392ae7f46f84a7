"""Stop strings: a growing text -> [StopStream] -> the text before the first of them.

A stop string may lie across tokens, and what is shown cannot be taken back, so the end of the text is held back as long as it may be
the beginning of a stop. In front of it stands what turns token ids into text (`Tokenizer.stream`, `AnswerStream`).
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStream:
    """Lets through what cannot become a stop string, and nothing from the first one on."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Empty strings stop nothing."""
        self.stopped = False
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> str:
        """What may be shown now that `text` has been added; sets `stopped` if a stop string is complete."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stops if stop in text]
        if found:
            # The one that was complete first; of several, the longest.
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        kept = len(text) - max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """What was held back and became no stop string, when the text has ended."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
