"""`fledge evaluate A B`: what is told is what was measured, on the same items, and nothing is told of models that are there no longer."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.metadata
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fledge.core import artifact, disk
from fledge.core.artifact import Request
from fledge.evaluation import comparison_measures
from fledge.evaluation.statistics import wilson_interval
from fledge.model.adapters import add_adapter
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings, ModelConfig, ModelSettings, padded_vocabulary_size
from fledge.options import names_recipe
from fledge.tokens.folder import META_FILE
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import copy_tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer
from fledge.verbs.comparison import find_given_benchmarks

from ..command_line import Fledge, expect_error

TEXT = "\n\n".join(f"The bird number {number} sings by the river, and the river runs on past the stones." * 60 for number in range(9))
ASKED = ("--file", "text.txt", "--prompt", "The <b>bird</b>", "--max-tokens", "3", "--to", "out")
SHAPE = ModelSettings(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, max_position_embeddings=96)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing (`flat`), one that is wrong with confidence (`loud`), and one of our checkpoints (`own`)."""
    place = tmp_path_factory.mktemp("models")
    (place / "tokenizer").mkdir()
    train_tokenizer(TokenizerSettings(vocabulary_size=300), [TEXT], place / "tokenizer")
    tokenizer = open_tokenizer(place / "tokenizer")
    config = ModelConfig(SHAPE, padded_vocabulary_size(tokenizer.vocabulary_size), tokenizer.document_start[0], tokenizer.end_ids(False))
    for name, scale in (("flat", 0.0), ("loud", 20.0)):
        model = Llama(config, seed=1)
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        (place / name).mkdir()
        save_model(model, place / name)
        copy_tokenizer(tokenizer, False, place / name, SHAPE.max_position_embeddings)
    with artifact.build(place / "own", Request("checkpoint", {"settings": {"stage": "pretrain", "training": {}}})) as (partial, _):
        for path in (place / "loud").iterdir():
            disk.write_bytes(partial / path.name, path.read_bytes())
    return place


@pytest.fixture
def here(originals: Path, tmp_path: Path) -> Path:
    """The same in the folder that the verb works in, to be damaged at will."""
    for name in ("flat", "loud", "own"):
        shutil.copytree(originals / name, tmp_path / name)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def kept(here: Path, fledge: Fledge) -> Callable[..., Path]:
    def make(*models: str) -> Path:
        outcome = fledge("evaluate", *models, *ASKED)
        assert outcome.exit_code == 0, outcome.noted
        return here / "out"

    return make


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary_and_the_files_agree(kept: Callable[..., Path], here: Path) -> None:
    out = kept("flat", "loud")
    told = json.loads((out / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    flat, loud = told["models"]
    by_name = {one["score"]["name"]: one["score"] for one in flat["measured"]}
    assert by_name["token_perplexity/text.txt"]["value"] == pytest.approx(padded_vocabulary_size(300), rel=1e-5)
    assert flat["weights_sha256"] == {"model.safetensors": sha256(here / "flat" / "model.safetensors")}
    assert flat["tokenizer_sha256"] == open_tokenizer(here / "flat").sha256
    assert [one["sha256"] for one in told["data"]] == [sha256(here / "text.txt")]
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    bits = {row["model"]: float(row["value"]) for row in rows if row["score"] == "bits_per_byte/text.txt"}
    assert bits["flat"] == by_name["bits_per_byte/text.txt"]["value"] < bits["loud"]
    items = list(csv.DictReader(io.StringIO((out / "outcomes.csv").read_text())))
    all_bits, all_bytes = (math.fsum(float(item[column]) for item in items) for column in ("flat", "weight"))
    assert all_bits / all_bytes == pytest.approx(bits["flat"])
    [difference] = told["differences"]
    assert difference["paired"]["difference"] == pytest.approx(bits["loud"] - bits["flat"])
    assert (difference["paired"]["n"], difference["paired"]["lower"]) == (len(items), 0)
    assert difference["paired"]["p_value"] < 0.05
    text = (out / "results.txt").read_text()
    assert f"{bits['flat']:.3f}" in text and "worse" in text
    assert {answer["prompt"] for model in (flat, loud) for answer in model["answers"]} == {"The <b>bird</b>"}
    html = (out / "comparison.html").read_text()
    assert not re.search(r"<b>bird|<script|(?:src|href)=\"(?!#)|url\(|@import", html)
    assert "The &lt;b&gt;bird&lt;/b&gt;" in html and flat["tokenizer_sha256"] in html


def test_equal_models_differ_in_nothing_whoever_wrote_them(kept: Callable[..., Path], here: Path) -> None:
    """One is a checkpoint of ours, one as others leave it, without our description of its tokenizer."""
    (here / "loud" / META_FILE).unlink()
    told = json.loads((kept("own", "loud") / "results.json").read_text())
    [difference] = told["differences"]
    assert (difference["paired"]["difference"], difference["paired"]["p_value"]) == (0.0, 1.0)
    assert told["models"][0]["checkpoint_id"] == artifact.open_artifact(here / "own").id


def test_what_was_measured_is_not_measured_again(kept: Callable[..., Path], fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> None:
    out = kept("flat", "own")
    before = (out / "manifest.json").read_bytes()
    monkeypatch.setattr(comparison_measures, "measure", lambda *_: pytest.fail("measured again"))
    again = fledge("evaluate", "flat", "own", *ASKED)
    assert again.exit_code == 0, again.noted
    assert "measured before" in again.said and "Bits per byte" in again.said + again.noted
    assert (out / "manifest.json").read_bytes() == before
    shown = fledge("show", "out")
    assert shown.exit_code == 0 and "Bits per byte: text.txt" in shown.said + shown.noted


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("text.txt", "data.text.txt"),
        ("flat/model.safetensors", "model.0"),
        ("flat/tokenizer.json", "model.0"),
        ("own/config.json", "model.1"),
    ],
)
def test_a_stale_comparison_is_refused(kept: Callable[..., Path], here: Path, fledge: Fledge, changed: str, named: str) -> None:
    kept("flat", "own")
    content = (here / changed).read_bytes()
    (here / changed).write_bytes(content[:-2] + b" " + content[-1:])
    expect_error(fledge("show", "out"), 4, "stale", named, "fledge evaluate flat own --to out")
    (here / changed).write_bytes(content)
    assert fledge("show", "out").exit_code == 0
    (here / changed).unlink()
    expect_error(fledge("show", "out"), 4, "stale", named)


def test_a_changed_model_is_measured_again_and_the_old_figures_are_kept_aside(
    kept: Callable[..., Path], here: Path, fledge: Fledge
) -> None:
    out = kept("flat", "loud")
    before = (out / "results.json").read_bytes()
    shutil.copy(here / "flat" / "model.safetensors", here / "loud" / "model.safetensors")
    again = fledge("evaluate", "flat", "loud", *ASKED)
    assert again.exit_code == 0, again.noted
    assert "input.model.1" in again.said and "measured again" in again.said
    [difference] = json.loads((out / "results.json").read_text())["differences"]
    assert difference["paired"]["p_value"] == 1.0
    [aside] = here.glob("out~*")
    assert (aside / "results.json").read_bytes() == before


def test_results_that_were_edited_are_refused(kept: Callable[..., Path], here: Path, fledge: Fledge) -> None:
    path = kept("flat", "loud") / "results.txt"
    path.write_text(path.read_text().replace("worse", "right"))
    expect_error(fledge("show", "out"), 4, "results.txt", "the manifest says")
    expect_error(
        fledge("evaluate", "flat", "loud", *ASKED),
        4,
        "results.txt",
    )


def test_refusals(here: Path, fledge: Fledge) -> None:
    expect_error(fledge("evaluate", "flat", "loud"), 2, "nothing to measure on", "--file")
    expect_error(fledge("evaluate", "flat", "flat", "--file", "text.txt"), 2, "named twice")
    expect_error(fledge("evaluate", "flat", "nobody", "--file", "text.txt"), 4, "nobody")
    expect_error(fledge("evaluate", "flat", "loud", "--force", "--file", "text.txt"), 2, "--force")
    expect_error(fledge("evaluate", "flat", "loud", "--file", "flat/config.json"), 3, "--file names")
    expect_error(fledge("evaluate", "flat", "--file", "text.txt", "--to", "own"), 4, "own")
    (here / "empty.txt").write_text("\n")
    expect_error(fledge("evaluate", "flat", "--prompts", "empty.txt"), 3, "holds no prompt")
    (here / "own" / "config.json").write_bytes((here / "own" / "config.json").read_bytes().replace(b"32", b"64"))
    expect_error(fledge("evaluate", "own", "--file", "text.txt"), 4, "not what was trained", "config.json")


def test_recipes_and_models_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart").mkdir()
    assert names_recipe("mine.yaml", ["pretrain.steps=3"])
    assert names_recipe("quickstart", [])
    assert names_recipe("quickstrat", [])
    assert not names_recipe("mine", [])
    assert not names_recipe("mine@best", [])
    assert not names_recipe("quickstart", ["mine"])
    assert not names_recipe(str(tmp_path), [])


def test_benchmarks_are_compared_row_by_row(here: Path, fledge: Fledge) -> None:
    """A folder of rows, one's own task, and a sample of them; the sign test counts the rows that only one model has right."""
    (here / "rows").mkdir()
    rows = [{"passage": f"Bird {number} sings.", "question": f"does bird {number} sing", "label": number % 2} for number in range(30)]
    (here / "rows" / "boolq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "mine.yaml").write_text("kind: last_word\nfile: mine.jsonl\ntext: '{line}'\n")
    (here / "mine.jsonl").write_text("".join(json.dumps({"line": f"The bird by the {number} river"}) + "\n" for number in range(12)))
    outcome = fledge("evaluate", "flat", "loud", "--benchmarks", "rows", "--benchmarks", "mine=mine.yaml", "--samples", "20", "--to", "out")
    assert outcome.exit_code == 0, outcome.noted
    told = json.loads((here / "out" / "results.json").read_text())
    assert {one["name"]: one["sha256"] for one in told["data"]} == {
        "boolq": sha256(here / "rows" / "boolq.jsonl"),
        "mine": sha256(here / "mine.jsonl"),
    }
    scores = {one["score"]["name"]: one["score"] for one in told["models"][1]["measured"]}
    assert (scores["boolq/acc"]["n"], scores["mine/acc"]["n"]) == (20, 12)
    items = [row for row in csv.DictReader(io.StringIO((here / "out" / "outcomes.csv").read_text())) if row["score"] == "boolq/acc"]
    differences = {one["score"]: one["paired"] for one in told["differences"]}
    paired = differences["boolq/acc"]
    assert paired["higher"] == sum(item["loud"] > item["flat"] for item in items)
    assert paired["lower"] == sum(item["loud"] < item["flat"] for item in items)
    assert paired["difference"] == pytest.approx(scores["boolq/acc"]["value"] - sum(float(item["flat"]) for item in items) / 20)
    # Of a last word's perplexity the nats are paired, and a uniform model pays the same for every token.
    assert differences["mine/perplexity"]["method"] == "paired bootstrap"
    expect_error(fledge("evaluate", "flat", "--benchmarks", "rows", "--samples", "some"), 2, "--samples some")
    expect_error(fledge("evaluate", "flat", "--benchmarks", "boolq=gone.jsonl"), 3, "gone.jsonl")
    expect_error(fledge("evaluate", "flat", "--benchmarks", "rows", "--benchmarks", "boolq=rows"), 2, "boolq is named twice")
    expect_error(fledge("evaluate", "flat", "--harness", "boolq=mine.jsonl", "--harness", "boolq"), 2, "boolq is named twice")
    expect_error(fledge("evaluate", "flat", "--file", "text.txt", "--benchmarks", "text.txt=mine.yaml"), 2, "text.txt is named twice")


def test_rows_in_a_folder_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "boolq.jsonl.gz").write_bytes(gzip.compress(b'{"passage": "A", "question": "b", "label": 1}\n'))
    (tmp_path / "boolqx.jsonl").touch()
    [found] = find_given_benchmarks([str(tmp_path)])
    assert (found.name, found.file.path.name) == ("boolq", "boolq.jsonl.gz")


def test_tasks_of_lm_eval_have_intervals_and_its_version(here: Path, fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = pytest.importorskip("lm_eval.evaluator")
    monkeypatch.setattr(evaluator, "get_git_commit_hash", lambda: pytest.fail("git is asked, and complains outside of a repository"))
    version = importlib.metadata.version("lm_eval")
    rows = [{"passage": f"Bird {number} sings.", "question": f"does bird {number} sing", "label": number % 2} for number in range(10)]
    (here / "boolq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = fledge("evaluate", "loud", "--harness", "boolq=boolq.jsonl", "--to", "out")
    assert outcome.exit_code == 0, outcome.noted
    told = json.loads((here / "out" / "results.json").read_text())
    [acc] = [one["score"] for one in told["models"][0]["measured"]]
    assert (acc["name"], acc["n"], acc["unit"]) == ("lm-eval boolq/acc", 10, "share")
    assert (acc["low"], acc["high"]) == wilson_interval(acc["value"] * 10, 10)
    assert (told["software"]["lm_eval"], told["asked"]["lm_eval"]) == (version, version)
    assert "it/s" not in outcome.said + outcome.noted


def test_figures_of_lm_eval_become_scores() -> None:
    figures = {
        "alias": "boolq",
        "acc,none": 0.75,
        "acc_stderr,none": 0.1,
        "word_perplexity,none": 33.0,
        "word_perplexity_stderr,none": "N/A",
    }
    figures |= {"exact_match,strict-match": 0.0, "f1,none": 0.5, "f1_stderr,none": 0.1}
    scores = comparison_measures.harness_scores("boolq", {**figures, "sample_len": 20}, None)
    accuracy, perplexity, strict, f1 = scores
    assert (accuracy.name, accuracy.value, accuracy.n, accuracy.unit) == ("lm-eval boolq/acc", 0.75, 20, "share")
    assert (accuracy.low, accuracy.high) == wilson_interval(15, 20)
    assert (strict.name, strict.unit) == ("lm-eval boolq/exact_match,strict-match", "share")
    assert (f1.unit, f1.low) == ("number", pytest.approx(0.5 - 0.196, abs=1e-3))
    assert (perplexity.name, perplexity.unit, perplexity.low) == ("lm-eval boolq/word_perplexity", "perplexity", None)


def test_the_base_of_an_adapter_is_part_of_what_was_measured(here: Path, fledge: Fledge) -> None:
    model = load_model(here / "loud")
    add_adapter(model, Adapter(LoraSettings(rank=2, alpha=4.0), here / "loud"), seed=0)
    (here / "adapted").mkdir()
    save_model(model, here / "adapted")
    copy_tokenizer(open_tokenizer(here / "loud"), False, here / "adapted", SHAPE.max_position_embeddings)
    assert fledge("evaluate", "loud", "adapted", *ASKED).exit_code == 0
    told = json.loads((here / "out" / "results.json").read_text())
    assert told["models"][1]["weights_sha256"] == {
        "adapter_model.safetensors": sha256(here / "adapted" / "adapter_model.safetensors"),
        "base/model.safetensors": sha256(here / "loud" / "model.safetensors"),
    }
    # A new adapter adds nothing yet.
    assert told["differences"][0]["paired"]["difference"] == 0.0
    shutil.copy(here / "flat" / "model.safetensors", here / "loud" / "model.safetensors")
    expect_error(fledge("show", "out"), 4, "stale", "model.1.base")


def test_a_text_without_words_has_no_perplexity_per_word(here: Path, fledge: Fledge) -> None:
    (here / "text.txt").write_text("thebirdsings" * 500)
    outcome = fledge("evaluate", "flat", "--file", "text.txt", "--to", "out")
    assert outcome.exit_code == 0, outcome.noted
    names = [one["score"]["name"] for one in json.loads((here / "out" / "results.json").read_text())["models"][0]["measured"]]
    assert names == ["bits_per_byte/text.txt", "token_perplexity/text.txt"]
