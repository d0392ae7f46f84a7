"""The command line as a process: quick help, two-line errors with their exit codes, lines that come when they are written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest


def fledge(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fledge", *arguments],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def expect_error(result: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    lines = result.stderr.strip().splitlines()
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  fix: ")
    for word in words:
        assert word in result.stderr, f"{word!r} is not in {result.stderr!r}"


def test_help_is_quick(tmp_path: Path) -> None:
    """In CPU seconds, which a busy machine stretches least; nearly all of it is imports, so on an idle one it is what one waits."""
    fastest = min(cpu_seconds_of_help(tmp_path) for _ in range(3))
    assert fastest < 0.5


def cpu_seconds_of_help(folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = fledge("--help", folder=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert "pretrain" in result.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version(tmp_path: Path) -> None:
    assert fledge("--version", folder=tmp_path).stdout.startswith("fledge ")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.stesp=3", ("unknown key pretrain.stesp", "did you mean pretrain.steps?")),
        ("pretrain.steps=0", ("steps must be at least 1",)),
        ("pretrain.steps=many", ("pretrain.steps", "'many'")),
        ("tokenizer.vocabulary_size=100", ("vocabulary_size must be at least 260",)),
        ("model.num_attention_heads=3", ("256", "3")),
        ("corpus.sources.7.name=x", ("list of 3",)),
        ("nothing", ("is not an override",)),
    ],
)
def test_a_wrong_recipe_is_explained_before_any_work(tmp_path: Path, override: str, words: tuple[str, ...]) -> None:
    expect_error(fledge("run", "quickstart", override, folder=tmp_path), 2, *words)
    assert not (tmp_path / "runs").exists()


def test_a_missing_recipe_and_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("corpus: null\n")
    expect_error(fledge("run", "mien.yaml", folder=tmp_path), 2, "there is no recipe file", "did you mean mine.yaml?")


def test_stages_out_of_order_and_unknown(tmp_path: Path) -> None:
    expect_error(fledge("run", "quickstart", "--from", "dpo", "--to", "corpus", folder=tmp_path), 2, "comes after")
    expect_error(fledge("run", "quickstart", "--to", "shipping", folder=tmp_path), 2, "no stage 'shipping'")


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("tokenizer", ("no corpus of documents", "fledge corpus quickstart")),
        ("pack", ("no corpus to pack", "fledge corpus quickstart")),
        ("pretrain", ("no tokens to work with", "fledge pack quickstart")),
        ("sft", ("no tokens to work with", "fledge pack quickstart")),
        ("dpo", ("no tokens to work with", "fledge pack quickstart")),
    ],
)
def test_a_stage_without_its_inputs_names_the_command_that_makes_them(tmp_path: Path, verb: str, words: tuple[str, ...]) -> None:
    expect_error(fledge(verb, "quickstart", folder=tmp_path), 4, *words)


def test_a_plan_needs_nothing_but_a_recipe_and_a_device_that_is_known(tmp_path: Path) -> None:
    expect_error(fledge("plan", "quickstart", "--device", "abacus", folder=tmp_path), 2, "no device 'abacus'", "RTX 4090")
    expect_error(fledge("plan", "quickstart", "pretrain.stesp=3", folder=tmp_path), 2, "did you mean pretrain.steps?")
    assert not (tmp_path / "runs").exists()


def test_packing_without_a_tokenizer_names_the_command_that_trains_one(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A line of text.\n" * 20)
    override = f"corpus.sources.0.path={text}"
    assert fledge("corpus", "own-text", override, folder=tmp_path).returncode == 0
    expect_error(fledge("pack", "own-text", override, folder=tmp_path), 4, "no tokenizer", "fledge tokenizer own-text")


def test_absent_and_incomplete_data_folders(tmp_path: Path) -> None:
    expect_error(fledge("corpus", "own-text", "corpus.sources.0.path=nowhere", folder=tmp_path), 3, "nowhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one.txt").write_text("one file")
    overrides = ("corpus.sources.0.path=data", "corpus.sources.0.expect.files=300")
    expect_error(fledge("corpus", "own-text", *overrides, folder=tmp_path), 3, "300", "1")


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    expect_error(fledge("corpus", "own-text", "corpus.sources.0.path=empty.txt", folder=tmp_path), 3)


def test_unknown_runs_and_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    expect_error(fledge("generate", "quickstrat", "--prompt", "x", folder=tmp_path), 4, "did you mean quickstart?")
    expect_error(fledge("chat", "quickstart", folder=tmp_path), 4, "holds no checkpoint")
    expect_error(fledge("show", "quickstart", folder=tmp_path), 4, "nothing finished")


def test_the_same_place_asked_for_differently_is_refused_and_force_moves_it_aside(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A line of text.\n" * 20)
    arguments = ("corpus", "own-text", "corpus.sources.0.path=text.txt")
    assert fledge(*arguments, folder=tmp_path).returncode == 0
    changed = (*arguments, "corpus.seed=1")
    expect_error(fledge(*changed, folder=tmp_path), 4, "seed: 0 -> 1", "--force")
    forced = fledge(*changed, "--force", folder=tmp_path)
    assert forced.returncode == 0
    assert "moved aside" in forced.stdout
    assert len(list((tmp_path / "runs" / "own-text").glob("corpus~*"))) == 1


def test_launched_processes_fail_with_one_voice(tmp_path: Path) -> None:
    """Two real processes, each without its inputs."""
    expect_error(
        fledge("pretrain", "quickstart", "--processes", "2", folder=tmp_path), 4, "no tokens to work with", "fledge pack quickstart"
    )


def test_processes_are_not_launched_by_processes(tmp_path: Path) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2"}
    expect_error(fledge("sft", "quickstart", "--processes", "2", folder=tmp_path, environment=ranks), 2, "one of 2 processes already")


def test_only_training_runs_in_many_processes(tmp_path: Path) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2"}
    expect_error(fledge("corpus", "quickstart", folder=tmp_path, environment=ranks), 2, "one process")


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        ((), 2, ("no recipe is given", "fledge corpus --list")),
        (("own-text", "--rank", "2", "--world", "2"), 2, ("--rank 2 is not one of --world 2", "from 0 to 1")),
        (("own-text", "--list", "--analyze-only"), 2, ("--list and --analyze-only cannot be had at once",)),
        (("own-text", "--test"), 2, ("--test means nothing without --download-only",)),
        (("own-text", "--analyze-only", "--world", "2"), 2, ("--analyze-only is done by one process",)),
        (("own-text", "--analyze-only", "--force"), 2, ("--force",)),
        (("own-text", "--chunk-documents", "5"), 2, ("--chunk-documents", "--download-only")),
        (("own-text", "corpus=null"), 2, ("no stage 'corpus'",)),
        (("own-text", "corpus.quality.preset=wbe"), 2, ("corpus.quality.preset", "wbe")),
        (("own-text", "corpus.sources.0.content=conversations"), 2, ("conversations",)),
        (("quickstart", "corpus.sources.0.content=conversations", "--analyze-only"), 3, ("no source of documents to analyse",)),
        (("quickstart", "corpus.sources.0.content=conversations", "--download-only"), 3, ("no source of documents to download",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_options_of_corpus_are_explained(tmp_path: Path, options: tuple[str, ...], exit_code: int, words: tuple[str, ...]) -> None:
    expect_error(fledge("corpus", *options, folder=tmp_path), exit_code, *words)
    assert not list(tmp_path.rglob("corpus"))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("tokenizer",), 2, ("no recipe is given", "--compare")),
        (("tokenizer", "one", "--encode", "a", "--force", "--name", "x"), 2, ("--name and --force cannot be had with --encode",)),
        (("tokenizer", "one", "--encode", "a", "--decode", "1"), 2, ("--encode and --decode cannot be had at once",)),
        (("tokenizer", "one", "--encode", "a"), 4, ("one holds no tokenizer", "no run or checkpoint one")),
        (("tokenizer", "--compare", "one"), 2, ("nothing to be compared with",)),
        (("inspect", "one"), 4, ("holds no token set",)),
    ],
)
def test_wrong_uses_of_tokens_are_explained(tmp_path: Path, arguments: tuple[str, ...], exit_code: int, words: tuple[str, ...]) -> None:
    expect_error(fledge(*arguments, folder=tmp_path), exit_code, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--rank=-1", "--chunk-documents=0"])
def test_numbers_of_corpus_have_a_least_value(tmp_path: Path, option: str) -> None:
    result = fledge("corpus", "own-text", option, folder=tmp_path)
    assert result.returncode == 2
    assert option.partition("=")[0] in result.stderr


def test_datasets_are_listed_without_a_network(tmp_path: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    override = f"corpus.cache_folder={tmp_path / 'cache'}"
    result = fledge("corpus", "--list", "own-text", override, folder=tmp_path, environment=nowhere)
    assert result.returncode == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    for name in ("fineweb", "fineweb-edu-10bt", "c4", "wikipedia", "gutenberg", "pile-uncopyrighted"):
        assert "nothing" in lines[name], "downloaded"
    assert "27.6 GB" in lines["fineweb-10bt"] or "28 GB" in lines["fineweb-10bt"]
    assert "CC BY-SA" in lines["wikipedia"]
    assert result.stdout.splitlines()[-1] == f"downloads lie in {tmp_path / 'cache'}"
    assert list(tmp_path.iterdir()) == []


def test_raw_chunks_can_be_downloaded_and_become_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"Paragraph {number} is about number {number}.\n\n" for number in range(100)))
    source = ("corpus.sources.0.path=text.txt", "corpus.sources.0.maximum_document_characters=50")
    whole = fledge("corpus", "own-text", *source, "--download-only", "--workers", "2", "--chunk-documents", "15", folder=tmp_path)
    assert "100 documents in 7 chunks" in whole.stdout, whole.stderr
    assert {entry.name for entry in (tmp_path / "runs" / "own-text").iterdir()} <= {".lock", "raw", "work"}
    chunks = "corpus.sources=[{kind: jsonl, name: chunks, path: runs/own-text/raw}]"
    made = fledge("corpus", "own-text", chunks, "corpus.deduplicate.kind=exact", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    stats = json.loads((tmp_path / "runs" / "own-text" / "corpus" / "documents" / "manifest.json").read_text())["stats"]
    assert (stats["read"], sum(stats["rows"].values())) == (100, 100)


def test_the_analysis_says_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A line of text.\n" * 20)
    result = fledge("corpus", "own-text", "corpus.sources.0.path=text.txt", "--analyze-only", "--name", "look", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"analysis: {tmp_path / 'runs' / 'look' / 'analysis' / 'card.html'}"
    assert sorted(entry.name for entry in (tmp_path / "runs" / "look").iterdir()) == [".lock", "analysis"]


def test_config_prints_every_value_and_its_origin(tmp_path: Path) -> None:
    result = fledge("config", "quickstart", "pretrain.steps=77", folder=tmp_path)
    assert result.returncode == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("pretrain.steps"))
    assert "77" in line
    assert "override pretrain.steps=77" in line
    small = fledge("config", "quickstart", "--smoke", folder=tmp_path)
    line = next(line for line in small.stdout.splitlines() if line.startswith("pretrain.steps"))
    assert "--smoke" in line


def test_a_given_path_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A line of text.\n" * 20)
    result = fledge("corpus", "own-text", "corpus.sources.0.path=text.txt", "--name", "./here", folder=tmp_path)
    assert result.returncode == 0
    assert (tmp_path / "here" / "corpus" / "documents" / "manifest.json").is_file()
    assert not (tmp_path / "runs").exists()


def test_the_library_shows_what_it_promises() -> None:
    import fledge as library

    assert library.__all__ == ["create_model", "load", "open_tokenizer", "open_tokens"]
    assert all(callable(getattr(library, name)) for name in library.__all__)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = library.train  # type: ignore[attr-defined]
