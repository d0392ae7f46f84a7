"""The same figures three ways: our scorer, lm-eval asking our model, and lm-eval's own backend for transformers on the same folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.evaluation import harness
from fledge.evaluation.benchmarks.places import find_benchmark
from fledge.evaluation.benchmarks.run import run_benchmark
from fledge.evaluation.harness import harness_results
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer, open_tokenizer

from .benchmark_rows import ROWS, write_rows
from .conftest import ROW_TOKENS, Corpus

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
    copy_tokenizer(corpus.tokenizer, folder, answers=True, maximum_tokens=ROW_TOKENS)
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


def test_lm_eval_on_our_model_is_lm_eval_on_transformers(
    folder: Path, files: dict[str, Path], found: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    for name, path in files.items():
        disk.write_json(tmp_path / f"{name}.yaml", harness._local_task(name, path))
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(tmp_path))
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    other = lm_eval.simple_evaluate(model=theirs, tasks=list(files), task_manager=manager, bootstrap_iters=0)["results"]
    for name in files:
        expected = figures(other[name])
        assert expected.keys() == figures(found[name]).keys()
        for metric, value in expected.items():
            print(name, metric, value, figures(found[name])[metric])
            assert figures(found[name])[metric] == pytest.approx(value, rel=2e-6), (name, metric)
