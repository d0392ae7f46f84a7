"""A run that is sent while it trains: what goes, what stays on the hub, and that another machine goes on with it to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fledge.core import artifact, disk
from fledge.core.artifact import Artifact, Request
from fledge.core.errors import ArtifactError, DataError, Stopped
from fledge.core.process import run_lock
from fledge.publish import watching
from fledge.publish.hub import Repository
from fledge.publish.pulling import pull
from fledge.publish.watching import Watch, watch
from fledge.stages import STAGES, TRAINING_STAGES
from fledge.stages.corpus import WORK
from tests.command_line import Fledge

from .hub_stub import Fault, HubStub
from .results import content, tree, write_artifact, write_corpus

STAGE = Request("training", {"stage": "pretrain"})
RECIPE = """
corpus: {workers: 1, validation_fraction: 0.2, sources: [{kind: text, name: text, path: "TEXT", maximum_document_characters: 200}]}
tokenizer: {vocabulary_size: 300}
pack: {sequence_length: 64}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48, max_position_embeddings: 64}
pretrain:
  steps: 60
  batch_rows: 4
  sequence_length: 32
  precision: fp32
  threads: 1
  save_every_steps: 20
  validate_every_steps: 20
  log_every_steps: 1
  metrics: {tensorboard: false}
"""


class Training:
    """A stage as training leaves it, without the training."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "pretrain"
        artifact.begin(self.folder, STAGE)

    def save(self, step: int, loss: float | None = None) -> Artifact:
        wanted = {"stage": STAGE.kind, "step": step, "settings": STAGE.settings}
        files = {"config.json": b"{}", "model.safetensors": content(step), "resume/state.json": b"{}"}
        disk.append_line(self.folder / "metrics.jsonl", json.dumps({"step": step, "time": 0}))
        place = self.folder / "checkpoints" / f"step-{step:06}"
        return write_artifact(place, "checkpoint", files, settings=wanted, stats={"step": step, "validation_loss": loss})

    def finish(self, final: Artifact) -> None:
        place = final.path.relative_to(self.folder).as_posix()
        files = {f"{place}/{name}": digest for name, digest in final.manifest.files.items()}
        artifact.finish(self.folder, STAGE, files, {"final": place})


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path / "runs" / "run")


@pytest.fixture
def one(hub: HubStub, training: Training, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch whose repository is there already."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.01)
    made = Watch(training.run, Repository("me/run", "model"), STAGES, TRAINING_STAGES, WORK, 2)
    watching.create(made.repository, public=False)
    return made


def steps(hub: HubStub) -> list[int]:
    return sorted(int(name.split("-")[1].split("/")[0]) for name in hub.repos["models/me/run"].files if name.endswith("model.safetensors"))


def test_a_commit_for_each_checkpoint_and_the_last_ones_stay(hub: HubStub, one: Watch, training: Training, tmp_path: Path) -> None:
    write_corpus(training.run / "corpus" / "documents")
    for step in (10, 20, 30):
        training.save(step)
        one.look()
        one.look()
    repo = hub.repos["models/me/run"]
    assert [message.split(" ", 1)[0] for message in repo.messages[1:]] == ["corpus/documents", "pretrain:", "pretrain:", "pretrain:"]
    assert steps(hub) == [20, 30]
    # What is new each time is one checkpoint, not the corpus again.
    assert hub.received_bytes == (2 + 3) * 60_000
    pull("me/run", tmp_path / "back", None, "main")
    assert tree(tmp_path / "back") == {name: one for name, one in tree(training.run).items() if "step-000010" not in name}


def test_the_best_goes_too_and_stays(hub: HubStub, one: Watch, training: Training) -> None:
    training.save(10, 3.0)
    training.save(20, 1.0)
    training.save(30, 2.0)
    one.look()
    assert steps(hub) == [20, 30]
    for step in (40, 50):
        training.save(step, 2.0)
        one.look()
    assert steps(hub) == [20, 40, 50]


def test_a_checkpoint_that_is_removed_meanwhile_is_sent_or_skipped(hub: HubStub, one: Watch, training: Training) -> None:
    first = training.save(10)
    hub.fail("POST .*preupload", Fault(status=500))
    asked = threading.Thread(target=lambda: _when(lambda: bool(hub.asked("preupload")), lambda: disk.remove(first.path)))
    asked.start()
    one.look()
    asked.join()
    assert steps(hub) == [10] and not first.path.exists()
    second = training.save(20)
    found = watching.list_checkpoints(training.folder)[-1]
    disk.remove(second.path)
    assert not one._send_checkpoint("pretrain", found, None)
    assert steps(hub) == [10]


def test_a_damaged_checkpoint_is_not_sent(hub: HubStub, one: Watch, training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    training.save(10)
    path = training.save(20).path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    one.look()
    one.look()
    assert steps(hub) == []
    assert capsys.readouterr().err.count("step-000020 is damaged and not sent") == 1
    training.save(30)
    one.look()
    assert steps(hub) == [30]


def test_what_a_run_has_gone_back_before_goes_off_the_hub(hub: HubStub, one: Watch, training: Training) -> None:
    for step in (10, 20, 30):
        training.save(step)
        one.look()
    for step in (20, 30):
        disk.remove(training.folder / "checkpoints" / f"step-{step:06}")
    training.save(15)
    one.look()
    assert steps(hub) == [15]


def test_a_stage_made_anew_takes_the_place_of_the_one_before(hub: HubStub, one: Watch, training: Training) -> None:
    training.save(10)
    one.look()
    disk.remove(training.folder)
    artifact.begin(training.folder, Request("training", {"stage": "another"}))
    disk.append_line(training.folder / "metrics.jsonl", "{}")
    wanted = {"stage": "training", "step": 20, "settings": {"stage": "another"}}
    place = training.folder / "checkpoints" / "step-000020"
    write_artifact(place, "checkpoint", {"model.safetensors": content(20)}, settings=wanted, stats={"step": 20})
    one.look()
    assert steps(hub) == [20]


def test_inputs_from_outside_the_run_are_told(hub: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = write_artifact(tmp_path / "tokens", "tokens", {"tokens.json": b"{}"})
    run = tmp_path / "runs" / "run"
    wanted = Request("training", {}, {"tokens.0": outside.as_input()})
    artifact.begin(run / "pretrain", wanted)
    settings = {"stage": "training", "step": 5, "settings": {}}
    files = {"model.safetensors": content(5)}
    write_artifact(run / "pretrain/checkpoints/step-000005", "checkpoint", files, {"tokens.0": outside}, settings, {"step": 5})
    made = Watch(run, Repository("me/run", "model"), STAGES, TRAINING_STAGES, WORK, 2)
    watching.create(made.repository, public=False)
    made.look()
    made.look()
    assert capsys.readouterr().err.count(f"push {outside.path} by itself") == 1
    sent = hub.repos["models/me/run"].files
    assert b"elsewhere/tokens-" in sent["pretrain/stage.json"] and b"../tokens" not in sent["pretrain/stage.json"]


def test_it_waits_for_a_run_and_ends_when_nobody_works_on_it(hub: HubStub, one: Watch, training: Training, tmp_path: Path) -> None:
    disk.move(training.run, tmp_path / "later")
    ended = threading.Event()

    def train() -> None:
        _when(lambda: bool(hub.asked("create")), lambda: disk.move(tmp_path / "later", training.run))
        with run_lock(training.run):
            last = training.save(10)
            training.finish(last)
            _when(lambda: 10 in steps(hub), lambda: None)
            time.sleep(0.1)
            assert not ended.is_set()

    thread = threading.Thread(target=train)
    thread.start()
    watch(one, public=False)
    ended.set()
    thread.join()
    pull("me/run", tmp_path / "back", None, "main")
    assert artifact.open_artifact(tmp_path / "back" / "pretrain").manifest.kind == "training"
    assert not one.links.exists()


def test_a_hub_that_is_down_is_waited_for_and_told_once(
    hub: HubStub, one: Watch, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.finish(training.save(10))
    hub.fail("^(GET|POST) /api", *[Fault(status=503)] * 40)
    watch(one, public=False)
    assert steps(hub) == [10] and not hub.faults
    assert capsys.readouterr().err.count("not sent yet") == 1


def test_a_refusal_ends_it_and_so_does_damage_of_what_is_finished(hub: HubStub, one: Watch, training: Training) -> None:
    training.finish(training.save(10))
    hub.fail("POST .*commit", Fault(status=403))
    with pytest.raises(DataError, match="403"):
        watch(one, public=False)
    made = write_corpus(training.run / "corpus" / "documents")
    path = made.path / "train-00000.parquet"
    path.write_bytes(content(99))
    with pytest.raises(ArtifactError, match="train-00000"):
        watch(one, public=False)


def test_a_file_that_is_replaced_meanwhile_is_looked_at_again(
    hub: HubStub, one: Watch, training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training.finish(training.save(10))
    looks = iter((True, False, False))
    over = iter((False, True, True))
    look = Watch.look

    def replaced(self: Watch) -> None:
        if next(looks):
            raise FileNotFoundError(2, "No such file", "machine.json")
        look(self)

    monkeypatch.setattr(Watch, "look", replaced)
    monkeypatch.setattr(Watch, "is_over", lambda self: next(over))
    watch(one, public=False)
    assert steps(hub) == [10] and "machine.json is gone; trying again" in capsys.readouterr().err
    looks, over = iter((True,)), iter((True,))
    with pytest.raises(ArtifactError, match=r"machine\.json is gone"):
        watch(one, public=False)


def test_a_signal_ends_it_after_a_last_look(hub: HubStub, one: Watch, training: Training) -> None:
    training.save(10)

    def signal_after_one() -> None:
        _when(lambda: 10 in steps(hub), lambda: training.save(20))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_after_one)
    thread.start()
    with pytest.raises(Stopped) as caught:
        watch(one, public=False)
    thread.join()
    assert caught.value.exit_code == 143 and steps(hub) == [10, 20]


def _when(happened: object, then: object, seconds: float = 120.0) -> None:
    assert callable(happened) and callable(then)
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
    then()


def test_another_machine_goes_on_to_the_same_bits(hub: HubStub, fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real training is killed while its run is sent; the pulled folder and the same command make the run that nobody disturbed."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.2)
    source = random.Random(0)
    words = ["bird", "river", "stone", "cloud", "letter", "window", "garden", "song", "winter", "road"]
    sentences = (f"The {source.choice(words)} by the {source.choice(words)} is like a {source.choice(words)}." for _ in range(240))
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(next(sentences) for _ in range(4)) for _ in range(60)))
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("TEXT", "text.txt"))
    command = ["run", "tiny.yaml", "--to", "pretrain", "--name"]
    training = subprocess.Popen([sys.executable, "-m", "fledge", *command, "spot"], cwd=tmp_path, stderr=subprocess.DEVNULL)

    def preempt() -> None:
        place = "pretrain/checkpoints/step-000020/manifest.json"
        # Held where it is, so that it does not end before it is killed.
        _when((tmp_path / "runs" / "spot" / place).exists, lambda: training.send_signal(signal.SIGSTOP))
        _when(lambda: any(place in repo.files for repo in hub.repos.values()), training.kill)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=preempt)
    thread.start()
    outcome = fledge("push", "spot", "me/spot", "--watch", "--keep", "1")
    thread.join()
    training.wait()
    assert outcome.exit_code == 143, outcome.noted
    assert not (tmp_path / "runs" / "spot" / "pretrain" / "manifest.json").exists(), "it was killed before its end"
    disk.remove(tmp_path / "runs" / "spot")

    assert fledge("pull", "me/spot", "runs/other").said.splitlines()[-1].endswith("with --name runs/other: it continues")
    arrived = [int(path.name.split("-")[1]) for path in (tmp_path / "runs/other/pretrain/checkpoints").iterdir()]
    (tmp_path / "text.txt").rename(tmp_path / "elsewhere.txt")
    continued = fledge(*command, "other")
    assert continued.exit_code == 0, continued.noted
    assert f"continues after step {max(arrived)} " in continued.said + continued.noted
    assert "no longer bitwise" not in continued.said + continued.noted
    (tmp_path / "elsewhere.txt").rename(tmp_path / "text.txt")
    assert fledge(*command, "alone").exit_code == 0

    other, alone = (tmp_path / "runs" / name / "pretrain" for name in ("other", "alone"))
    for name in ("model.safetensors", "resume/optimizer.safetensors"):
        place = f"checkpoints/step-000060/{name}"
        assert (other / place).read_bytes() == (alone / place).read_bytes()
    assert artifact.open_artifact(other).id == artifact.open_artifact(alone).id
    assert _losses(other) == _losses(alone)

    assert fledge("push", "runs/alone/pack/documents", "me/tokens").exit_code == 0
    disk.remove(tmp_path / "runs" / "alone" / "pack")
    assert fledge("pull", "me/tokens", "taken").exit_code == 0
    (tmp_path / "text.txt").unlink()
    trained = fledge("pretrain", "tiny.yaml", "pretrain.tokens=[taken/pack/documents]", "--name", "from-tokens")
    assert trained.exit_code == 0, trained.noted
    for name in ("model.safetensors", "resume/optimizer.safetensors"):
        place = f"pretrain/checkpoints/step-000060/{name}"
        assert (tmp_path / "runs" / "from-tokens" / place).read_bytes() == (tmp_path / "runs" / "other" / place).read_bytes()


def _losses(stage: Path) -> list[tuple[object, ...]]:
    records = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    found = [(record["step"], record.get("train/loss"), record.get("validation/loss")) for record in records]
    assert [step for step, *_ in found if step] and len({one for _, one, _ in found}) > 50
    return found
