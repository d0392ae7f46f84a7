"""The same figures three ways: our scorer, lm-eval asking our model, and lm-eval's own backend for transformers on the same folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.evaluation import harness
from fledge.evaluation.benchmarks.places import find_benchmark
from fledge.evaluation.benchmarks.run import run_benchmark
from fledge.evaluation.harness import harness_results
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama
from fledge.tokens.foreign import open_text_tokenizer
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer, open_tokenizer

from .benchmark_rows import LONG, PAGE, ROWS, write_rows
from .conftest import ROW_TOKENS, Corpus, open_texts_as_llama_does

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    return {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in ROWS.items()}


@pytest.fixture(scope="module")
def folder(corpus: Corpus, random_model: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(random_model, folder)
    copy_tokenizer(corpus.tokenizer, True, folder, maximum_tokens=ROW_TOKENS)
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Llama, Tokenizer]:
    return load_model(folder).eval(), open_tokenizer(folder)


@pytest.fixture(scope="module")
def found(opened: tuple[Llama, Tokenizer], files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    return harness_results(*opened, list(files), files)


def figures(found: dict[str, Any]) -> dict[str, float]:
    return {key.removesuffix(",none"): value for key, value in found.items() if key.endswith(",none") and "stderr" not in key}


def printed(value: float) -> str:
    return f"{value:.4f}"


@pytest.mark.parametrize("name", ROWS)
def test_our_scorer_is_lm_eval_on_our_model(
    name: str, opened: tuple[Llama, Tokenizer], files: dict[str, Path], found: dict[str, dict[str, Any]]
) -> None:
    ours = {score.name.removeprefix(f"{name}/"): score.value for score in run_benchmark(*opened, find_benchmark(name, files[name])).scores}
    theirs = figures(found[name])
    assert set(ours) - {"token_perplexity"} == set(theirs)
    for metric, value in theirs.items():
        assert ours[metric] == pytest.approx(value, rel=2e-6), metric
        assert printed(ours[metric]) == printed(value), metric


def require_same(ours: float, theirs: float, what: tuple[str, str]) -> None:
    """All printed digits; of perplexities of a model that knows nothing, tens of thousands, four decimals are more than fp32 sums hold."""
    assert ours == pytest.approx(theirs, rel=1e-6), what
    if "perplexity" not in what[1]:
        assert printed(ours) == printed(theirs), what


def on_transformers(folder: Path, files: dict[str, Path], tasks: Path) -> dict[str, dict[str, Any]]:
    """What lm-eval's own backend finds on the same folder and rows."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    for name, path in files.items():
        disk.write_json(tasks / f"{name}.yaml", harness._local_task(name, path))
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(tasks))
    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    found: dict[str, dict[str, Any]] = lm_eval.simple_evaluate(
        model=model, tasks=list(files), task_manager=manager, bootstrap_iters=0, log_samples=False
    )["results"]
    return found


def test_lm_eval_on_our_model_is_lm_eval_on_transformers(
    folder: Path, files: dict[str, Path], found: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    other = on_transformers(folder, files, tmp_path)
    for name in files:
        expected = figures(other[name])
        assert expected.keys() == figures(found[name]).keys()
        for metric, value in expected.items():
            require_same(figures(found[name])[metric], value, (name, metric))


def test_a_tokenizer_of_others_opens_texts_as_it_does_in_transformers(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Llama's puts a token in front of every text, which lm-eval keeps: before contexts, and as part of texts whose price is measured."""
    shutil.copytree(folder, tmp_path / "foreign")
    (tmp_path / "foreign" / "tokenizer_meta.json").unlink()
    token = open_texts_as_llama_does(tmp_path / "foreign")
    model, tokenizer = load_model(tmp_path / "foreign").eval(), open_text_tokenizer(tmp_path / "foreign")
    assert tokenizer.opening == (token,)
    chosen = {name: files[name] for name in ("lambada_openai", "hellaswag", "wikitext")}
    other = on_transformers(tmp_path / "foreign", chosen, tmp_path / "tasks")
    for task, rows in chosen.items():
        scores = {score.name.partition("/")[2]: score.value for score in run_benchmark(model, tokenizer, find_benchmark(task, rows)).scores}
        for metric, value in figures(other[task]).items():
            require_same(scores[metric], value, (task, metric))


def test_perplexity_is_that_of_a_plain_script_of_transformers(folder: Path, opened: tuple[Llama, Tokenizer], tmp_path: Path) -> None:
    """Strides over one text, as the guide of transformers goes about it; nothing of ours."""
    import torch
    import transformers

    (tmp_path / "text.txt").write_text(f"{PAGE}{LONG}\n", encoding="utf-8")
    options: dict[str, Any] = {"context_tokens": 100, "stride_tokens": 60}
    scores = run_benchmark(*opened, find_benchmark("text", tmp_path / "text.txt"), **options).scores

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [tokenizer.bos_token_id, *tokenizer((tmp_path / "text.txt").read_text(encoding="utf-8"), add_special_tokens=False).input_ids]
    nats, scored = 0.0, 1
    while scored < len(ids):
        end = min(len(ids), scored + (100 if scored == 1 else 60))
        begin = max(0, end - 101)
        inputs = torch.tensor([ids[begin:end]])
        labels = inputs.clone()
        labels[0, : scored - begin] = -100
        with torch.no_grad():
            nats += float(model(inputs, labels=labels).loss) * (end - scored)
        scored = end
    perplexity = next(score.value for score in scores if score.name == "text/token_perplexity")
    assert perplexity == pytest.approx(torch.tensor(nats / (len(ids) - 1)).exp().item(), rel=1e-5)


def test_answers_and_the_chat_template_are_those_of_transformers(folder: Path, opened: tuple[Llama, Tokenizer]) -> None:
    import transformers
    from lm_eval.api.instance import Instance

    scorer = harness._language_model_class()(*opened, 2_048, "fp32")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "system", "content": "be short"}, {"role": "user", "content": "What does turn_rows do?"}]
    prompt = scorer.apply_chat_template(asked)
    assert prompt == theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert scorer.tok_encode(prompt) == theirs(prompt, add_special_tokens=False).input_ids, "control tokens are spelled, and read as such"
    begun = [*asked, {"role": "assistant", "content": "It will"}]
    assert scorer.apply_chat_template(begun, add_generation_prompt=False) == f"{prompt}It will"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ways = [{"until": ["e"], "max_gen_toks": 12}, {"until": "zzz", "max_gen_toks": 5}]
    requests = [Instance("generate_until", {}, (f"{prompt}{start}", way), 0) for start in ("It", "Turn") for way in ways]
    for request, written in zip(requests, scorer.generate_until(requests), strict=True):
        context, way = request.args
        inputs = theirs(context, add_special_tokens=False, return_tensors="pt")
        whole = model.generate(**inputs, max_new_tokens=way["max_gen_toks"], do_sample=False)[0, inputs.input_ids.shape[1] :]
        stop = way["until"][0] if isinstance(way["until"], list) else way["until"]
        assert written == theirs.decode(whole, skip_special_tokens=True).split(stop)[0]


def test_what_lm_eval_cannot_be_asked_is_refused(opened: tuple[Llama, Tokenizer], files: dict[str, Path], tmp_path: Path) -> None:
    for task, path, said in (
        ("mmlu", files["boolq"], "no single task 'mmlu'"),
        ("boolq", tmp_path / "none.jsonl", "cannot be taken from"),
        ("boolq", tmp_path, "cannot be taken from"),
    ):
        with pytest.raises(DataError, match=said):
            harness_results(*opened, [task], {task: path})


def test_rows_of_a_file_are_not_shown_solved_before_they_are_asked(opened: tuple[Llama, Tokenizer], files: dict[str, Path]) -> None:
    for task, examples, said in (("boolq", 2, "boolq shows 2 solved"), ("triviaqa", 3, "shows 3"), ("gsm8k", None, "gsm8k shows 5")):
        with pytest.raises(DataError, match=said):
            harness_results(*opened, [task], {task: files["boolq"]}, examples=examples)
    assert harness._refuse_solved_rows("gsm8k_cot", None) is None, "these are written in the task itself"  # type: ignore[func-returns-value]
    assert harness._refuse_solved_rows("gsm8k", 0) is None  # type: ignore[func-returns-value]


def test_the_first_rows_are_taken(opened: tuple[Llama, Tokenizer], files: dict[str, Path]) -> None:
    found = harness_results(*opened, ["boolq"], {"boolq": files["boolq"]}, limit=1)
    assert figures(found["boolq"])["acc"] in (0.0, 1.0) and found["boolq"]["sample_len"] == 1
