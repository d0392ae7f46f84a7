"""What a recipe says about the tokenizer and about packing; light to import, so that a typo in a recipe costs no time."""

from __future__ import annotations

from typing import Annotated, Literal

from fledge.core.config import ByKind, operation, settings

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
class CorpusSplitSettings:
    """Documents lie on the side on which the corpus has them, where near copies are kept together."""

    kind: Literal["corpus"] = "corpus"


@settings
class FractionSplitSettings:
    """A share of the documents is held out, whatever the corpus says, by the SHA-256 of their text and the seed."""

    kind: Literal["fraction"] = "fraction"
    validation_fraction: float = 0.05
    """Share of the documents that is held out."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, not {self.validation_fraction}")


@settings
class BudgetSplitSettings:
    """So many tokens are packed for each side, from the beginning of every source in proportion to its bytes; sides as by fraction."""

    kind: Literal["budget"] = "budget"
    train_tokens: int = 1_000_000_000
    """Tokens to train on."""
    validation_tokens: int = 10_000_000
    """Tokens to hold out."""

    def __post_init__(self) -> None:
        for name in ("train_tokens", "validation_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@settings
class PackSettings:
    """How token ids are laid out on disk."""

    sequence_length: int = 1024
    """Length of one row in tokens: of conversations, of preferences, and of documents if document_layout is best_fit."""
    document_layout: Literal["continuous", "best_fit"] = "continuous"
    """Documents one behind the other, which training cuts into rows of any length; or whole in rows by best fit, only the longest cut."""
    split: Annotated[CorpusSplitSettings | FractionSplitSettings | BudgetSplitSettings, ByKind()] = CorpusSplitSettings()
    """Which documents are held out."""
    shuffle: bool = False
    """Whether documents change places, within blocks of 16,384; training permutes rows in any case."""
    seed: int = 0
    """Decides the split by content and the shuffle."""
    allow_shared_documents: bool = operation(False)
    """Whether to pack although a document to train on is also held out."""
    import_bin: str | None = operation(None)
    """Folder of train.bin and val.bin without headers to take the documents from, or hub:OWNER/NAME of such a dataset."""
    tokenizer: str | None = operation(None)
    """Folder of a tokenizer trained elsewhere; none: the tokenizer of this run."""
    corpus: tuple[str, ...] = operation(())
    """Folders of corpora built elsewhere to pack; empty: those of this run."""

    def __post_init__(self) -> None:
        if self.sequence_length < 8:
            raise ValueError(f"sequence_length must be at least 8 tokens, not {self.sequence_length}")
