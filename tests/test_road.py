"""The whole quickstart as a newcomer runs it, once; each bar that it must reach is a test on what it left.

The run is a process of its own with both cores. `make test` calls this file first and alone, so that the time means something.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fledge.core import artifact
from fledge.core.metrics import read_metrics
from fledge.core.run_record import RUN_RECORD
from fledge.corpus.document import read_conversations, read_documents, read_preferences
from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import load_model
from fledge.stages import STAGES
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.tokens.chat import render
from fledge.tokens.tokenizer import open_tokenizer

pytestmark = pytest.mark.road

ROOT = Path(__file__).parent.parent
ANSWER = re.compile(r"^answer: +(.+)$", re.MULTILINE)
ROAD_SECONDS = {"bf16": 600, "fp32": 1_500}
"""By what training computes in, on two cores that may be busy; benchmarks/quickstart.py holds the 180 s of two idle ones with bf16."""


@dataclass(frozen=True)
class Road:
    home: Path
    """Where `fledge` was called."""
    run: Path
    output: str
    seconds: float

    def stage(self, place: str) -> dict[str, Any]:
        return artifact.open_artifact(self.run / place).stats

    def score(self, checkpoint: str, name: str) -> dict[str, Any]:
        results = json.loads((self.run / "evaluate" / "results.json").read_text())
        evaluation = next(one for one in results["evaluations"] if one["name"] == checkpoint)
        return next(score for score in evaluation["scores"] if score["name"] == name)


def fledge(*arguments: str, home: Path, stdin: str | None = None, watched: bool = False) -> subprocess.CompletedProcess[str]:
    """`watched`: its imports are listed on stderr."""
    environment = {**os.environ, "NO_COLOR": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, *(["-X", "importtime"] if watched else []), "-m", "fledge", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, input=stdin, timeout=1800)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    home = tmp_path_factory.mktemp("road")
    started = time.monotonic()
    result = fledge("run", str(ROOT / "recipes" / "quickstart.yaml"), home=home)
    assert result.returncode == 0, result.stderr
    return Road(home, home / "runs" / "quickstart", result.stdout + result.stderr, time.monotonic() - started)


def test_it_ends_in_an_answer_in_time(road: Road) -> None:
    print(f"the road took {road.seconds:.0f} s")
    assert road.seconds < ROAD_SECONDS[json.loads((road.run / "pretrain" / "machine.json").read_text())["chosen"]["precision"]]
    answer = ANSWER.search(road.output)
    assert answer is not None
    assert len(answer[1]) > 10
    assert "report.html" in road.output
    assert "fledge chat" in road.output
    assert " left" in road.output


def test_every_stage_left_an_artifact_that_names_its_inputs(road: Road) -> None:
    for stage in STAGES:
        assert list((road.run / stage).rglob("manifest.json")), stage
    dpo = artifact.open_artifact(road.run / "dpo")
    kinds = {given.kind for _, _, given, found in artifact.lineage(dpo) if found is not None}
    assert kinds == {"tokens", "corpus", "tokenizer", "checkpoint", "scores"}


def test_bits_per_byte(road: Road) -> None:
    measured = road.score("pretrain", "bits_per_byte")
    results = json.loads((road.run / "evaluate" / "results.json").read_text())
    compressors = {figure["name"]: figure["bits_per_byte"] for figure in results["compressors"]}
    print(f"bits per byte: {measured['value']:.3f}; {compressors}")
    assert measured["value"] <= 2.0
    assert measured["value"] < compressors["xz"] < compressors["zlib"]
    assert len(compressors) == 3


@pytest.mark.parametrize("checkpoint", ["sft", "dpo"])
def test_answers_stop_and_differ(road: Road, checkpoint: str) -> None:
    stopped, distinct = road.score(checkpoint, "stop_rate"), road.score(checkpoint, "distinct_answers")
    print(f"{checkpoint}: {stopped['value']:.2f} of {stopped['n']} stop, {distinct['value']} distinct")
    assert stopped["n"] == 100
    assert stopped["value"] >= 0.95
    assert distinct["value"] >= 20


def test_the_right_answer_fits_its_own_question(road: Road) -> None:
    choice = road.score("sft", "answer_choice")
    print(f"own question: {choice['value']:.3f} of {choice['n']}")
    assert choice["n"] == 400
    assert choice["value"] >= 0.65


def test_dpo_starts_at_ln_2_and_learns_every_kind_of_damage(road: Road) -> None:
    assert road.stage("dpo")["initial_loss"] == pytest.approx(math.log(2), abs=1e-4)
    overall = road.score("dpo", "reward_accuracy")
    by_kind = {kind: road.score("dpo", f"reward_accuracy/{kind}")["value"] for kind in ("cut", "repeat", "run_on")}
    print(f"reward accuracy: {overall['value']:.3f} of {overall['n']}; {by_kind}")
    assert overall["value"] >= 0.8
    assert min(by_kind.values()) >= 0.6


def test_a_second_run_repeats_nothing(road: Road) -> None:
    """But for the record of what was asked last, and when."""
    before = {path: path.stat().st_mtime_ns for path in road.run.rglob("*") if path.is_file() and path.name not in (".lock", RUN_RECORD)}
    started = time.monotonic()
    result = fledge("run", str(ROOT / "recipes" / "quickstart.yaml"), home=road.home, watched=True)
    seconds = time.monotonic() - started
    after = {path: path.stat().st_mtime_ns for path in road.run.rglob("*") if path.is_file() and path.name not in (".lock", RUN_RECORD)}
    print(f"the second run took {seconds:.1f} s")
    assert result.returncode == 0
    assert after == before
    assert seconds < 15, "3 s on idle cores"
    assert ANSWER.findall(result.stdout) == ANSWER.findall(road.output)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "fledge.cli" in imported
    assert not imported & {"torch", "numba"}


def test_nothing_that_is_measured_was_trained_on(road: Road) -> None:
    corpus = road.run / "corpus"
    trained_groups = {row.group for row in read_documents(corpus / "documents", "train")}
    trained_groups |= {row.group for row in read_conversations(corpus / "conversations", "train")}
    trained_groups |= {row.group for row in read_preferences(corpus / "preferences", "train")}
    held_out_groups = {row.group for row in read_documents(corpus / "documents", "validation")}
    held_out_groups |= {row.group for row in read_conversations(corpus / "conversations", "validation")}
    held_out_groups |= {row.group for row in read_preferences(corpus / "preferences", "validation")}
    assert len(held_out_groups) > 400
    assert not trained_groups & held_out_groups
    trained_answers = {row.messages[-1].content for row in read_conversations(corpus / "conversations", "train")}
    assert not trained_answers & {row.messages[-1].content for row in read_conversations(corpus / "conversations", "validation")}


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_transformers_opens_a_checkpoint_as_it_lies(road: Road, stage: str) -> None:
    folder = find_checkpoint(str(road.run / stage))
    ours, tokenizer = load_model(folder).eval(), open_tokenizer(folder)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "textwrap.dedent(text)\n\nRemove any common leading whitespace from every line."
    ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
    assert their_tokenizer(text)["input_ids"] == ids[1:]
    with torch.no_grad():
        our_logits, their_logits = ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
    difference = (our_logits - their_logits).abs().max() / their_logits.abs().max()
    print(f"{stage}: largest difference over largest logit {difference:.1e}")
    assert difference <= 1e-5
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=40)
    [completion] = Engine(ours, tokenizer.vocabulary_size, ours.config.end_token_ids).generate([ids[:12]], greedy)
    generated = theirs.generate(torch.tensor([ids[:12]]), do_sample=False, max_new_tokens=40)[0, 12:].tolist()
    ended = [] if completion.end_token is None else [completion.end_token]
    assert generated == [*completion.ids, *ended]


def test_the_chat_template_is_the_one_that_was_trained(road: Road) -> None:
    folder = find_checkpoint(str(road.run / "sft"))
    tokenizer, theirs = open_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    conversation = next(read_conversations(road.run / "corpus" / "conversations", "validation"))
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    assert theirs.apply_chat_template(messages, return_dict=False) == render(tokenizer, conversation.messages).ids
    assert theirs.eos_token == "<|im_end|>"


class _References(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href"} and value and not value.startswith("#")]


def test_the_report_holds_everything_and_needs_nothing(road: Road) -> None:
    html = (road.run / "report" / "report.html").read_text()
    for words in ("<svg", "zlib", "xz primed", "Bits per byte", "What does", "tokens planned", "sha256", "Lineage"):
        assert words.lower() in html.lower(), words
    references = _References()
    references.feed(html)
    assert references.found == []
    assert "<script" not in html


def test_metrics_are_kept_twice(road: Road) -> None:
    records = read_metrics(road.run / "pretrain")
    assert records[-1]["step"] == road.stage("pretrain")["steps"]
    assert any("validation/bits_per_byte" in record for record in records)
    assert list((road.run / "pretrain" / "tensorboard").iterdir())


def test_show_and_verify(road: Road) -> None:
    shown = fledge("show", "quickstart", home=road.home)
    assert shown.returncode == 0
    assert "<- start_from: checkpoint" in shown.stdout
    assert "not there any more" not in shown.stdout
    verified = fledge("verify", "quickstart", home=road.home)
    assert verified.returncode == 0
    assert "every byte is as it was written" in verified.stdout


def test_generate_and_chat(road: Road) -> None:
    text = fledge(
        "generate", "quickstart/pretrain@final", "--prompt", "textwrap.dedent", "--max-tokens", "20", "--seed", "1", home=road.home
    )
    assert text.returncode == 0
    assert text.stdout.startswith("textwrap.dedent")
    again = fledge("generate", "quickstart/pretrain", "--prompt", "textwrap.dedent", "--max-tokens", "20", "--seed", "1", home=road.home)
    assert again.stdout == text.stdout
    spoken = fledge("chat", "quickstart@best", "--temperature", "0", home=road.home, stdin="What does `os.path.join` do?\n/new\nHello\n")
    assert spoken.returncode == 0
    assert len(spoken.stdout.strip()) > 10


def test_the_readme_is_true(road: Road) -> None:
    """Its Python runs as it stands, and the test that it names is there."""
    readme = (ROOT / "README.md").read_text()
    named = re.search(r"-m pytest (tests/\S+::\w+)", readme)
    assert named is not None
    file, _, function = named[1].partition("::")
    assert f"def {function}(" in (ROOT / file).read_text()
    for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        ran = subprocess.run([sys.executable, "-c", code], cwd=road.home, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()


def test_smoke_works_on_every_verb(tmp_path: Path) -> None:
    walked = fledge("run", "quickstart", "--smoke", home=tmp_path)
    assert walked.returncode == 0, walked.stderr
    checkpoint = next((tmp_path / "runs" / "quickstart-smoke" / "sft" / "checkpoints").glob("step-*"))
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["temperature"], generation["maximum_new_tokens"]) == (True, 0.8, 48), "the recipe's own"
    for stage in STAGES:
        again = fledge(stage, "quickstart", "--smoke", home=tmp_path)
        assert again.returncode == 0, again.stderr
        assert "already done" in again.stderr, stage
    for arguments in (
        ("config", "quickstart", "--smoke"),
        ("show", "quickstart", "--smoke"),
        ("verify", "quickstart", "--smoke"),
        ("generate", "quickstart", "--prompt", "A", "--max-tokens", "4", "--smoke"),
        ("chat", "quickstart@final", "--max-tokens", "4", "--smoke"),
    ):
        result = fledge(*arguments, home=tmp_path, stdin="Hello\n")
        assert result.returncode == 0, result.stderr
        # What a model of twelve steps says may be white space.
        assert result.stdout if arguments[0] == "chat" else result.stdout.strip()


@pytest.mark.parametrize(
    ("launcher", "processes"),
    # accelerate starts several processes on GPUs or by MPI only; on a CPU it starts one.
    [(["torch.distributed.run", "--nproc-per-node", "2", "-m"], 2), (["accelerate.commands.launch", "--cpu", "-m"], 1)],
    ids=["torchrun", "accelerate"],
)
def test_training_starts_under_torchrun_and_accelerate(road: Road, launcher: list[str], processes: int) -> None:
    home = road.home / launcher[0].split(".")[0]
    home.mkdir()
    made = fledge("run", "quickstart", "--smoke", "--to", "pack", home=home)
    assert made.returncode == 0, made.stderr
    result = subprocess.run(
        [sys.executable, "-m", *launcher, "fledge", "pretrain", "quickstart", "--smoke", "pretrain.precision=fp32"],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert f"{processes} x cpu" in result.stdout
    folder = home / "runs" / "quickstart-smoke" / "pretrain"
    assert json.loads((folder / "machine.json").read_text())["circumstances"]["processes"] == processes
    assert artifact.open_artifact(folder).stats["steps"] == 12


def test_fledge_launches_the_processes_of_training_itself(road: Road) -> None:
    """The road to the answers in one command: two training stages, each in two processes, the second sharing its model."""
    home = road.home / "launched"
    home.mkdir()
    overrides = ("pretrain.precision=fp32", "sft.parallel=fsdp")
    result = fledge("run", "quickstart", "--smoke", "--processes", "2", "--to", "sft", *overrides, home=home)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 x cpu by ddp") == 1
    assert result.stdout.count("2 x cpu by fsdp") == 1
    assert result.stderr.count("sample:") == 1, "a shared model writes no samples"
    for stage in ("pretrain", "sft"):
        assert artifact.open_artifact(home / "runs" / "quickstart-smoke" / stage).stats["steps"] == 12
