"""What a recipe says about the tokenizer and about packing; light to import, so that a typo in a recipe costs no time."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from fledge.core.config import ByKind, operation, settings

TokenizerKind = Literal["byte_bpe", "superbpe", "sentencepiece_bpe", "unigram", "import"]
Preset = Literal["gpt2", "llama", "codellama"]

BYTE_TOKENS = 256
TemplateName = Literal["chatml", "chatml_newline", "instruct", "chat", "alpaca", "plain"]
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
"""The control tokens in the order of their ids, which are the highest of the vocabulary; reserved tokens come after them."""
MINIMUM_VOCABULARY_SIZE = BYTE_TOKENS + len(SPECIAL_TOKENS)

DEFAULT_TRANSITION = 0.75
"""Best of three at 32,768 entries (4.109 characters per token; 0.4: 3.947, 0.9: 4.061). Of 200,000, 0.4 to 0.9 are published."""
DEFAULT_MAXIMUM_BYTES: dict[TokenizerKind, int] = {
    "byte_bpe": 1_000_000_000,
    "superbpe": 100_000_000,
    "sentencepiece_bpe": 300_000_000,
    "unigram": 100_000_000,
}
"""Text to train on, unless a recipe says how much: what is learned in minutes on one core, in a few GB."""


@settings
class TokenizerSettings:
    """How the tokenizer is trained, or where it comes from."""

    kind: TokenizerKind = "byte_bpe"
    """byte_bpe (split pattern of cl100k and Llama 3), superbpe, sentencepiece_bpe, unigram, or import: one that exists."""
    vocabulary_size: int = 32_768
    """Number of token ids, including 256 bytes, 4 special and the reserved tokens; an imported one brings its own, and `fledge plan` counts
    with this until it is there."""
    transition: float | int | None = None
    """superbpe: from where on merges may span words, a share of the vocabulary (0.4) or a number of tokens (80000); None: 0.75."""
    reserved_tokens: int = 0
    """Control tokens kept free for later use, named <|reserved_0|> and so on; no text becomes one."""
    template: TemplateName = "chatml"
    """How conversations are written, kept beside the tokenizer: chatml, chatml_newline (a newline before the end of a turn), instruct
    (### Instruction:), chat (Human:), alpaca (with a description of the task), plain (<s>User:). In chatml alone no text forges a turn."""
    maximum_bytes: int | None = None
    """Train on a sample of at most this many bytes of UTF-8; None: 1 GB, unigram and superbpe 100 MB, sentencepiece_bpe 300 MB."""
    sources: dict[str, float] = field(default_factory=dict)
    """Share of each source in the bytes trained on, {web: 3, code: 1}; sources not named are left out. Empty: all, as they are."""
    corpus: tuple[str, ...] = operation(())
    """Folders of document corpora built elsewhere to train on; empty: the documents of this run."""
    path: str | None = operation(None)
    """import: a tokenizer.json, a tokenizer.model, a folder that holds one, hub:OWNER/NAME, or hub:datasets/OWNER/NAME/FILE."""
    preset: Preset | None = None
    """import: a tokenizer by name, from the hub: gpt2, llama (Llama 2), codellama."""
    revision: str = "main"
    """import: branch, tag or commit of the repository on the hub."""
    turn_tokens: bool = False
    """import: add <|im_start|> and <|im_end|> above the ids of a tokenizer that has none, so that it can write conversations."""

    def __post_init__(self) -> None:
        if self.reserved_tokens < 0:
            raise ValueError(f"reserved_tokens must be at least 0, not {self.reserved_tokens}")
        if self.maximum_bytes is not None and self.maximum_bytes < 1:
            raise ValueError(f"maximum_bytes must be at least 1, not {self.maximum_bytes}")
        wrong = next((name for name, share in self.sources.items() if not share > 0), None)
        if wrong is not None:
            raise ValueError(f"the share of source {wrong!r} must be above 0, not {self.sources[wrong]}")
        self._check_kind()

    def _check_kind(self) -> None:
        given = {"path": self.path, "preset": self.preset, "turn_tokens": self.turn_tokens or None, "transition": self.transition}
        for name, value in given.items():
            owner = "superbpe" if name == "transition" else "import"
            if value is not None and self.kind != owner:
                raise ValueError(f"{name} belongs to kind {owner}, and kind is {self.kind}")
        if self.kind == "import":
            if (self.path is None) == (self.preset is None):
                raise ValueError("kind import needs one of path and preset")
            return
        unknown = self.kind in ("sentencepiece_bpe", "unigram")
        minimum = MINIMUM_VOCABULARY_SIZE + self.reserved_tokens + unknown
        if self.vocabulary_size < minimum:
            parts = [f"{BYTE_TOKENS} bytes", f"{len(SPECIAL_TOKENS)} special tokens"]
            parts += [f"{self.reserved_tokens} reserved tokens"] * bool(self.reserved_tokens) + ["<unk>"] * unknown
            raise ValueError(
                f"vocabulary_size must be at least {minimum} ({', '.join(parts[:-1])} and {parts[-1]}), not {self.vocabulary_size}"
            )
        if self.transition is not None:
            transition_tokens(self.transition, self.vocabulary_size - len(control_names(self)))


def transition_tokens(transition: float | int, ordinary_tokens: int) -> int:
    """Tokens at which superwords begin, of `ordinary_tokens` without control tokens: `transition` itself, or that share of them.

    Raises ValueError unless it leaves room for merges on both sides.
    """
    count = transition if isinstance(transition, int) else round(transition * ordinary_tokens)
    if not BYTE_TOKENS < count < ordinary_tokens:
        bounds = f"between {BYTE_TOKENS} and {ordinary_tokens} tokens, or a share of them"
        raise ValueError(f"transition must leave merges on both sides: {bounds}, not at {count}")
    return count


def control_names(settings: TokenizerSettings) -> tuple[str, ...]:
    """The control tokens of a tokenizer that is trained, in the order of their ids."""
    return (*SPECIAL_TOKENS, *reserved_names(settings.reserved_tokens))


def reserved_names(count: int) -> tuple[str, ...]:
    """Names of reserved tokens."""
    return tuple(f"<|reserved_{number}|>" for number in range(count))


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
    long_turns: Literal["drop", "truncate"] = "drop"
    """What is done with conversations and pairs that are longer than a row: drop them, or truncate at a turn, conversations to their
    first exchanges, prompts of pairs to their last."""
    learned_turns: Literal["answers", "everything"] = "answers"
    """What of a conversation is learned: the assistant's answers and their ends, or all of it."""
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
        if self.import_bin is not None:
            fixed = {"document_layout": "continuous", "split": CorpusSplitSettings(), "shuffle": False}
            changed = next((name for name, value in fixed.items() if getattr(self, name) != value), None)
            if changed is not None:
                raise ValueError(f"{changed} cannot be had with import_bin, whose documents stay as they lie")
