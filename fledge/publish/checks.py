"""Whether an exported folder is the model it was made from: [checks] is the last step before it appears, and the only use of transformers.

    weights     read back from the file: to the bit what was in memory, in the type asked for
    keys        none missing, unexpected or of another shape
    logits      of the two programs from the same weights, in fp32, relative to the largest: 1e-5
    tokenizer   the same ids for texts by hand and by rule from all of Unicode, and the same conversations
    greedy      each token of the other program's continuation is our likeliest, up to rounding

Without transformers the folder is read back by our own reader: weights, logits, ids and template. That finds no mistake
that reader and writer share; the result says so.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.core.errors import CheckpointError
from fledge.corpus.document import Message
from fledge.model.folder import load_model, read_weights, stored_weights
from fledge.model.llama import Llama
from fledge.publish.source import Source
from fledge.tokens.chat import render
from fledge.tokens.folder import TEMPLATE_FILE
from fledge.tokens.probes import PROBES, generated_texts
from fledge.tokens.templates import INPUT_MARK
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

LARGEST_DIFFERENCE = 1e-5
COMPARED_TEXTS = 1_000
CONTINUED_TOKENS = 16
_ROWS, _ROW_TOKENS = 4, 64

OWN_READER = "Fledge's own reader (transformers is not installed)"


def check_folder(source: Source, folder: Path, dtype: torch.dtype) -> str:
    """Compare a folder with its source; returns by what it was read. Raises CheckpointError naming the first thing that differs."""
    check_weights(source.model, folder, dtype)
    written = load_model(folder).eval()
    rows = probe_rows(source.model.config.vocabulary_size, source.model.config.settings.max_position_embeddings)
    program = transformers_name()
    if program is None:
        _check_own_logits(source.model, written, rows, dtype)
        _check_own_tokenizer(source.tokenizer, open_tokenizer(folder))
        return OWN_READER
    theirs, their_tokenizer = load_theirs(folder), _their_tokenizer(folder)
    check_logits(written, theirs, rows)
    check_greedy(written, theirs, rows[:1, :8], source.tokenizer.vocabulary_size)
    check_texts(source.tokenizer, lambda texts: their_tokenizer(list(texts), add_special_tokens=False)["input_ids"], "transformers")
    check_conversations(source.tokenizer, their_tokenizer)
    return program


def check_weights(model: Llama, folder: Path, dtype: torch.dtype) -> None:
    """Every tensor of the file is that of the model, cast. Raises CheckpointError."""
    found, expected = read_weights(folder), stored_weights(model)
    if found.keys() != expected.keys():
        _differ(f"its keys {', '.join(sorted(found.keys() ^ expected.keys())[:5])}")
    for name, weight in expected.items():
        if found[name].dtype != dtype or not torch.equal(found[name], weight.detach().to(dtype)):
            _differ(f"{name}, read back from the file")


def transformers_name() -> str | None:
    """The program that folders are compared with, and its version; None if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    return f"transformers {importlib.metadata.version('transformers')}"


def load_theirs(folder: Path, **options: Any) -> Any:
    """The model as transformers opens it, in fp32. Raises CheckpointError unless it finds every key and needs all."""
    import transformers

    with _quiet():
        opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, attn_implementation="sdpa", **options
        )
    model, told = opened
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[kind]:
            _differ(f"{kind.replace('_', ' ')} in transformers, {', '.join(map(str, sorted(told[kind])[:5]))}")
    return model.eval()


def their_config(config_json: dict[str, Any]) -> Any:
    """transformers' object of a config.json; of a GGUF file it would read only a part (no wavelengths of StableLM, no heads of Qwen3)."""
    import transformers

    return transformers.AutoConfig.for_model(**config_json)


def probe_rows(vocabulary_size: int, context_tokens: int) -> Tensor:
    """(rows, tokens) ids from the whole vocabulary, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary_size, (_ROWS, min(_ROW_TOKENS, context_tokens)), generator=generator)


@torch.no_grad()
def check_logits(ours: Llama, theirs: Any, rows: Tensor) -> None:
    """Both models give the same logits for rows (B, T). Raises CheckpointError with the relative difference."""
    expected = ours(rows)
    assert isinstance(expected, Tensor)
    _compare_logits(expected, theirs(input_ids=rows).logits)


def _compare_logits(expected: Tensor, found: Tensor) -> None:
    difference = float((expected - found).abs().max() / expected.abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        _differ(f"its logits by {difference:.1e} of the largest (at most {LARGEST_DIFFERENCE:.0e})")


@torch.no_grad()
def check_greedy(ours: Llama, theirs: Any, prompt: Tensor, vocabulary_size: int) -> None:
    """Their greedy continuation of a prompt (1, T) is ours. Ids from `vocabulary_size` on are padding, which neither may say."""
    padding = list(range(vocabulary_size, ours.config.vocabulary_size))
    length = min(CONTINUED_TOKENS, ours.config.settings.max_position_embeddings - prompt.shape[1])
    options = {"attention_mask": torch.ones_like(prompt), "suppress_tokens": padding or None}
    text = theirs.generate(prompt, max_new_tokens=length, do_sample=False, temperature=None, top_k=None, top_p=None, **options)
    logits = ours(text)[0, prompt.shape[1] - 1 : -1, :vocabulary_size]
    best, said = logits.max(-1).values, logits.gather(1, text[0, prompt.shape[1] :, None])[:, 0]
    if bool((best - said > LARGEST_DIFFERENCE * logits.abs().max()).any()):
        _differ("its greedy continuation")


def check_texts(tokenizer: Tokenizer, encode: Any, program: str, left_out: Iterable[str] = ()) -> None:
    """Another program gives the same ids for every text that spells no control token, and nothing of `left_out`.

    Raises CheckpointError with the first text that it encodes otherwise.
    """
    unlike = {*tokenizer.specials, *left_out}
    texts = [text for text in _texts() if not any(name in text for name in unlike)]
    for text, ours, theirs in zip(texts, tokenizer.encode_batch(texts), encode(texts), strict=True):
        if list(theirs) != ours:
            _differ(f"the ids of {text!r}, {list(theirs)[:20]} in {program} instead of {ours[:20]}")


def check_conversations(tokenizer: Tokenizer, theirs: Any) -> None:
    """The chat template of transformers' tokenizer gives the ids of `chat.render`. Raises CheckpointError."""
    if tokenizer.template is None:
        return
    for messages in _conversations():
        for asked in (True, False):
            given = [{"role": message.role, "content": message.content} for message in messages]
            found = theirs.apply_chat_template(given, add_generation_prompt=asked, tokenize=True, return_dict=False)
            if found != render(tokenizer, messages, answer_follows=asked).ids:
                _differ(f"the conversation {given}, rendered by its chat template")


def their_tokenizer_with(tokenizer_file: Path, template: str | None, **names: str) -> Any:
    """transformers' tokenizer of a `tokenizer.json` that writes conversations by a template."""
    import transformers

    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_file=str(tokenizer_file), chat_template=template, **names)


def _their_tokenizer(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers says while it loads is of no use here: a difference is an error of ours."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Its bar for GGUF asks nobody.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def _check_own_logits(model: Llama, written: Llama, rows: Tensor, dtype: torch.dtype) -> None:
    """What was written, with its config, computes what the model in memory does once its weights are cast."""
    cast = copy.deepcopy(model) if dtype != torch.float32 else model
    for parameter in cast.parameters() if cast is not model else ():
        parameter.copy_(parameter.to(dtype))
    expected, found = cast(rows), written(rows)
    assert isinstance(expected, Tensor) and isinstance(found, Tensor)
    _compare_logits(expected, found)


def _check_own_tokenizer(ours: Tokenizer, written: Tokenizer) -> None:
    check_texts(ours, written.encode_batch, "the folder")
    path = written.folder / TEMPLATE_FILE
    template = path.read_text(encoding="utf-8") if path.is_file() else None
    if template != (ours.template.jinja if ours.template else None):
        _differ("its chat template")


def _texts() -> Iterator[str]:
    yield from PROBES
    yield from generated_texts(COMPARED_TEXTS, seed=1)


def _conversations() -> Sequence[list[Message]]:
    question, answer = Message("user", " What is a list?\n"), Message("assistant", "A row of things. It\u2019s ordered.")
    return (
        [question, answer],
        [Message("system", "Be brief."), question, answer, Message("user", "And a tuple?"), answer],
        [Message("user", f"Sort these.{INPUT_MARK}3 1 2"), answer],
    )


def _differ(what: str) -> None:
    raise CheckpointError(f"the export is not the model it was made from: {what}", "nothing was written; please report this as a bug")
