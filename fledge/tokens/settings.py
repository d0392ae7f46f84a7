"""What a recipe says about the tokenizer and about packing; light to import, so that a typo in a recipe costs no time."""

from __future__ import annotations

from typing import Literal

from fledge.core.config import operation, settings

BYTE_TOKENS = 256
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""The control tokens in the order of their ids, which are the highest of the vocabulary."""
MINIMUM_VOCABULARY_SIZE = BYTE_TOKENS + len(SPECIAL_TOKENS)


@settings
class TokenizerSettings:
    """How the tokenizer is trained."""

    kind: Literal["byte_bpe"] = "byte_bpe"
    """Byte-level byte-pair encoding with the split pattern of cl100k and Llama 3."""
    vocabulary_size: int = 32_768
    """Number of token ids, including 256 bytes and 4 special tokens."""
    template: Literal["chatml"] = "chatml"
    """Chat format written beside the tokenizer."""
    corpus: tuple[str, ...] = operation(())
    """Folders of document corpora built elsewhere to train on; empty: the documents of this run."""

    def __post_init__(self) -> None:
        if self.vocabulary_size < MINIMUM_VOCABULARY_SIZE:
            raise ValueError(
                f"vocabulary_size must be at least {MINIMUM_VOCABULARY_SIZE} "
                f"({BYTE_TOKENS} bytes and {len(SPECIAL_TOKENS)} special tokens), not {self.vocabulary_size}"
            )


@settings
class PackSettings:
    """How token ids are laid out on disk."""

    sequence_length: int = 1024
    """Length of one row of conversations or preferences, in tokens; documents are one continuous stream and need none."""
    tokenizer: str | None = operation(None)
    """Folder of a tokenizer trained elsewhere; none: the tokenizer of this run."""
    corpus: tuple[str, ...] = operation(())
    """Folders of corpora built elsewhere to pack; empty: those of this run."""

    def __post_init__(self) -> None:
        if self.sequence_length < 8:
            raise ValueError(f"sequence_length must be at least 8 tokens, not {self.sequence_length}")
