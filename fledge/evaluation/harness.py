"""lm-evaluation-harness on a model of ours: [task names, files] -> lm-eval's tasks, rows from the files -> [Reader] -> lm-eval's figures.

The model answers in place, without export or server; lm-eval keeps the prompts, the metrics and the counting. Its name for what a model
must answer is TemplateLM, and three of our questions are all of it.

Texts are encoded with `tokenizer.json` as it lies, control tokens included, as lm-eval's own backend for transformers does, so that a
chat template may spell them. Rows come from files: for each such task a YAML file is written that takes lm-eval's own and puts the file
in place of the hub's dataset.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fledge.core import console, disk
from fledge.core.errors import DataError, MachineError
from fledge.core.installing import install_hint
from fledge.corpus.document import Message
from fledge.evaluation.continuations import Continuation, context_tokens_of, continuation_likelihoods
from fledge.evaluation.reader import Reader
from fledge.evaluation.scoring import BATCH_TOKENS
from fledge.inference.settings import GenerationSettings
from fledge.model.llama import Llama
from fledge.model.precision import Precision
from fledge.tokens.chat import render
from fledge.tokens.foreign import ForeignTokenizer, TextTokenizer
from fledge.tokens.tokenizer import Tokenizer

MAXIMUM_NEW_TOKENS = 256
"""Of an answer whose task sets no limit, as in lm-eval."""
_TASK = re.compile(r"""^task: *["']?([^\s"'#]+)""", re.MULTILINE)
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def harness_results(
    model: Llama,
    tokenizer: TextTokenizer,
    tasks: Sequence[str],
    data_files: Mapping[str, Path] | None = None,
    limit: int | None = None,
    *,
    examples: int | None = None,
    use_chat_template: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    precision: Precision = "fp32",
) -> dict[str, dict[str, Any]]:
    """lm-eval's figures by task ("acc,none": 0.42), on the first `limit` rows, after `examples` solved ones (None: the task's own number).

    A task that `data_files` names reads its rows there (fields as its dataset has them), any other from the hub or its cache. Raises
    MachineError if lm-eval is not installed, DataError for an unknown task, one whose rows are nowhere, a file of an unknown kind, or one
    whose solved examples would be the very rows of a file.
    """
    lm_eval, files = _library(), dict(data_files or {})
    definitions = {name: _local_task(name, path) for name, path in files.items()}
    for name in definitions:
        _refuse_solved_rows(name, examples)
    scorer = _language_model_class()(model, tokenizer, batch_tokens, precision)
    console.info(f"lm-eval asks {', '.join(tasks)}")
    with tempfile.TemporaryDirectory() as folder, _quietly(lm_eval):
        for name, definition in definitions.items():
            definition["dataset_kwargs"]["cache_dir"] = f"{folder}/cache"
            disk.write_json(Path(folder) / f"{name}.yaml", definition)
        # The scan of all its tasks takes lm-eval four seconds. Those found later replace others of the same name.
        manager = lm_eval.tasks.TaskManager(include_defaults=any(name not in files for name in tasks), include_path=folder)
        _require_known(manager, tasks)
        with _naming_missing_rows(tasks, files):
            found = lm_eval.simple_evaluate(
                model=scorer,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=examples,
                apply_chat_template=use_chat_template,
                log_samples=False,
                bootstrap_iters=0,
            )
    results: dict[str, dict[str, Any]] = found["results"]
    return results


def _library() -> Any:
    try:
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.tasks
    except ImportError as error:
        raise MachineError("lm-eval is not installed", f"install it: {install_hint('eval')}") from error
    return lm_eval


def _require_known(manager: Any, names: Sequence[str]) -> None:
    unknown = next((name for name in names if name not in manager.all_tasks), None)
    if unknown is not None:
        raise DataError(f"lm-eval has no task {unknown!r}", "list its tasks: lm-eval ls tasks")


def _local_task(name: str, path: Path) -> dict[str, Any]:
    """A task of lm-eval with its rows in a file, as the content of its YAML file; of all splits there is only the one that is measured."""
    original, builder = _definitions().get(name), _BUILDERS.get(path.suffix.lower())
    if original is None:
        raise DataError(f"lm-eval has no single task {name!r}", "name one task of lm-eval, not a group: lm-eval ls tasks")
    if builder is None or not path.is_file():
        raise DataError(f"the rows of {name} cannot be taken from {path}", f"name a file that ends in {', '.join(_BUILDERS)}")
    return {
        "include": str(original),
        "task": name,
        "dataset_path": builder,
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "training_split": None,
        "validation_split": None,
        "fewshot_split": None,
        "test_split": "test",
    }


@functools.cache
def _definitions() -> dict[str, Path]:
    """Where lm-eval defines each of its tasks; it has no public way to ask."""
    root = Path(_library().__file__).parent / "tasks"
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        match = _TASK.search(path.read_text(encoding="utf-8"))
        if match:
            found[match[1]] = path
    return found


def _refuse_solved_rows(name: str, examples: int | None) -> None:
    """Raises DataError for a task with rows in a file that would show some of them, answers included, before it asks them."""
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = load_yaml(_definitions()[name], resolve_func=False)
    shown = (definition.get("num_fewshot") or 0) if examples is None else examples
    has_own = bool((definition.get("fewshot_config") or {}).get("samples"))
    if shown > 0 and not has_own:
        raise DataError(
            f"lm-eval's {name} shows {shown} solved examples, which with a file are rows that it then asks",
            "leave the file out, so that rows and examples come from the hub, or name a task without examples",
        )


@contextmanager
def _quietly(lm_eval: Any) -> Iterator[None]:
    """Its notes and bars are for its own command line; and it asks git for the commit of whatever folder one is in."""
    logger, evaluator = logging.getLogger("lm_eval"), lm_eval.evaluator
    level, commit = logger.level, evaluator.get_git_commit_hash
    logger.setLevel(logging.ERROR)
    evaluator.get_git_commit_hash = lambda: None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        evaluator.get_git_commit_hash = commit


@contextmanager
def _naming_missing_rows(tasks: Sequence[str], files: Mapping[str, Path]) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, FileNotFoundError) as error:
        missing = ", ".join(name for name in tasks if name not in files) or ", ".join(tasks)
        raise DataError(
            f"the rows of {missing} cannot be had: {error}", "name a file that holds them, fields as in the dataset, or go online once"
        ) from error


@functools.cache
def _language_model_class() -> Any:
    """Made when it is first wanted, because its base comes with lm-eval."""
    from lm_eval.api.model import TemplateLM

    class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
        def __init__(self, model: Llama, tokenizer: TextTokenizer, batch_tokens: int, precision: Precision) -> None:
            super().__init__()
            self.chat_tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None
            encoder = tokenizer if self.chat_tokenizer is None else ForeignTokenizer(self.chat_tokenizer.folder)
            self.reader = Reader(model, encoder, batch_tokens, precision)
            self._device = model.lm_head.weight.device

        @property
        def eot_token_id(self) -> int:
            return self.reader.tokenizer.document_start[0]

        @property
        def max_length(self) -> int:
            return context_tokens_of(self.reader.model)

        @property
        def tokenizer_name(self) -> str:
            return self.reader.tokenizer.sha256

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            [ids] = self.reader.tokenizer.encode_batch([string])
            return ids if add_special_tokens is False else [*self.reader.tokenizer.opening, *ids]

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            asked = [Continuation(context, continued) for _, context, continued in requests]
            reader = self.reader
            found = continuation_likelihoods(reader.model, asked, reader.batch_tokens, reader.precision)
            return [(one.log_probability, one.is_greedy) for one in found]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [-price.nats for price in self.reader.prices([request.args[0] for request in requests])]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            written: dict[int, str] = {}
            ways = [_generation(request.args[1]) for request in requests]
            for way in dict.fromkeys(ways):
                members = [index for index, one in enumerate(ways) if one == way]
                settings, stop = way
                texts = self.reader.continued([requests[index].args[0] for index in members], settings, stop)
                written |= dict(zip(members, texts, strict=True))
            return [written[index] for index in range(len(requests))]

        def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
            if self.chat_tokenizer is None:
                raise DataError("this model's chat template is not one that Fledge knows", "leave out the chat template")
            messages = [Message(one["role"], one["content"]) for one in chat_history]  # type: ignore[arg-type]
            # An answer that was begun is not rendered, since that would end it.
            begun = "" if add_generation_prompt else messages.pop().content
            ids = render(self.chat_tokenizer, messages, answer_follows=True).ids
            return self.chat_tokenizer.decode(ids, keep_special=True) + begun

        def chat_template(self, chat_template: bool | str = False) -> str:
            return "" if self.chat_tokenizer is None else self.chat_tokenizer.meta.template

    return HarnessModel


def _generation(given: Mapping[str, Any]) -> tuple[GenerationSettings, tuple[str, ...]]:
    """lm-eval's `generation_kwargs` as ours: how tokens are drawn, and what ends an answer."""
    until = given.get("until") or []
    draws = bool(given.get("do_sample")) and (given.get("temperature") or 0) > 0
    settings = GenerationSettings(
        temperature=float(given["temperature"]) if draws else 0.0,
        top_k=int(given.get("top_k") or 0),
        top_p=float(given.get("top_p") or 1.0),
        maximum_new_tokens=int(given.get("max_gen_toks") or given.get("max_new_tokens") or MAXIMUM_NEW_TOKENS),
        seed=0,
    )
    return settings, (until,) if isinstance(until, str) else tuple(until)
