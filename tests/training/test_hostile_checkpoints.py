"""Files that others made to do harm: refused by name, in no time, without a line of theirs being run, and no secret of ours is written.

The attacks on the format of the weights follow the negative tests and the attacks/ folder of safetensors.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_assembly import run_stage, stage_settings

from fledge.core import artifact, disk
from fledge.core.artifact import MANIFEST
from fledge.core.errors import ArtifactError, CheckpointError, FledgeError
from fledge.model.folder import load_model
from fledge.model.tensors import read_tensors
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.tokens.shards import TokenSet
from fledge.training.checkpoint_folders import list_checkpoints
from fledge.training.sound_checkpoints import checkpoint_at, newest_sound, problems_of

ONE_TENSOR = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def weights(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {**ONE_TENSOR["a"], **changes}}


HOSTILE_WEIGHTS = {
    "a header of 2^63 bytes": weights(ONE_TENSOR, length=2**63),
    "a header of 2^64 - 1 bytes": weights(ONE_TENSOR, length=2**64 - 1),
    "a header of 101 MB": weights(ONE_TENSOR, length=101_000_000),
    "a header longer than the file": weights(ONE_TENSOR, length=10_000),
    "a header that is not UTF-8": weights(b'{"\xff\xfe": 1}'),
    "a header that is no JSON": weights(b"__import__('os').system('true')"),
    "a header that is a list": weights([1, 2]),
    "a header without an end": weights(b'{"a": {"dtype": "F32", '),
    "a header 100,000 levels deep": weights(b'{"a":' * 100_000),
    "tensors that overlap": weights({**tensor(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 12),
    "a hole between tensors": weights({**tensor(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}}, b"\0" * 24),
    "data that no tensor has": weights(tensor(), b"\0" * 16),
    "a shape that overflows": weights(tensor(shape=[2**62, 2**62])),
    "a shape of other size": weights(tensor(shape=[3])),
    "a negative shape": weights(tensor(shape=[-2])),
    "an unknown type": weights(tensor(dtype="PICKLE")),
    "offsets in reverse": weights(tensor(data_offsets=[8, 0])),
    "offsets beyond the file": weights(tensor(shape=[2**20], data_offsets=[0, 2**22])),
    "offsets that are text": weights(tensor(data_offsets=["0", "8"])),
    "a pickle": pickle.dumps({"a": 1}),
    "a zip of torch": b"PK\x03\x04" + b"\0" * 60,
    "zeros": b"\0" * 4096,
}


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_weights_that_are_none_are_refused_by_the_name_of_their_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE_WEIGHTS[name])
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no complete safetensors file"):
        read_tensors(path)
    assert time.process_time() - started < 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, documents: TokenSet) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_stage(folder, documents, stage_settings(keep_checkpoints=2))
    return folder


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(trained, tmp_path / "run")
    return list_checkpoints(tmp_path / "run")[-1].path


def renamed_in_manifest(checkpoint: Path, old: str, new: str) -> None:
    """The same manifest with another name for a file, its checksum mended as an attacker would."""
    raw = json.loads((checkpoint / MANIFEST).read_text())
    raw.pop("checksum")
    raw["files"][new] = raw["files"].pop(old)
    (checkpoint / MANIFEST).write_text(disk.json_text({**raw, "checksum": artifact.hash_json(raw)}))


@pytest.mark.parametrize(
    "name", ["../config.json", "/etc/passwd", "resume/../../../secret", "..", "a/../../b", "/", "../../step-000004/config.json"]
)
def test_a_manifest_names_no_file_outside_its_folder(checkpoint: Path, name: str) -> None:
    renamed_in_manifest(checkpoint, "config.json", name)
    with pytest.raises(ArtifactError, match="names a file outside its folder") as error:
        artifact.open_artifact(checkpoint)
    assert error.value.exit_code == 4


def linked_file(checkpoint: Path) -> None:
    shutil.move(checkpoint / "model.safetensors", checkpoint.parents[2] / "elsewhere")
    (checkpoint / "model.safetensors").symlink_to(checkpoint.parents[2] / "elsewhere")


def linked_folder(checkpoint: Path) -> None:
    shutil.move(checkpoint / "resume", checkpoint.parents[2] / "elsewhere")
    (checkpoint / "resume").symlink_to(checkpoint.parents[2] / "elsewhere")


def named_pipe(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    os.mkfifo(checkpoint / "config.json")


@pytest.mark.parametrize("spoil", [linked_file, linked_folder])
def test_a_link_is_no_file_of_a_checkpoint(checkpoint: Path, spoil: Callable[[Path], None]) -> None:
    """Even one to the very bytes that the manifest names."""
    spoil(checkpoint)
    with pytest.raises(ArtifactError, match="is a link, which an artifact never holds"):
        artifact.open_artifact(checkpoint)
    found = newest_sound(checkpoint.parents[1])
    assert found is not None and found.step == 4


def test_a_pipe_is_not_waited_for(checkpoint: Path) -> None:
    named_pipe(checkpoint)
    assert "config.json is missing" in problems_of(checkpoint)[0]


class Runs:
    """What a pickle does when it is opened."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "optimizer.pth"])
def test_a_pickle_is_never_opened_and_the_way_out_is_named(tmp_path: Path, checkpoint: Path, name: str) -> None:
    folder, trace = tmp_path / "given", tmp_path / "it-ran"
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)
    torch.save({"weights": Runs(trace)}, folder / name)
    with pytest.raises(CheckpointError, match=rf"only as pickle \({name}\)") as error:
        load_model(folder)
    assert "convert it: fledge import" in error.value.remedy
    for given in (folder / name, folder):
        with pytest.raises(CheckpointError):
            checkpoint_at(given)
    with pytest.raises(CheckpointError):
        find_checkpoint(str(folder / name))
    assert not trace.exists()


@pytest.mark.parametrize("index", [{"weight_map": {"a": "/etc/passwd"}}, {"weight_map": {"a": "../x"}}, {"weight_map": {"a": "absent"}}])
def test_an_index_of_weights_names_files_of_its_folder(tmp_path: Path, checkpoint: Path, index: dict[str, Any]) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names no files of this folder|is missing"):
        load_model(tmp_path)


def test_what_would_load_code_elsewhere_is_neither_obeyed_nor_written(tmp_path: Path, checkpoint: Path) -> None:
    """`auto_map` makes transformers run a file of the folder, if it is told to trust it."""
    written = json.loads((checkpoint / "config.json").read_text())
    assert "auto_map" not in written
    (checkpoint / "config.json").write_text(json.dumps({**written, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (checkpoint / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'it-ran')!r})")
    load_model(checkpoint)
    assert not (tmp_path / "it-ran").exists()


def test_a_checkpoint_holds_weights_and_text_only(trained: Path) -> None:
    for one in list_checkpoints(trained):
        files = [path for path in one.path.rglob("*") if not path.is_dir()]
        assert {path.suffix for path in files} == {".json", ".safetensors"}
        assert not any(path.is_symlink() or path.stat().st_mode & 0o111 for path in files)


@pytest.mark.parametrize("number", range(3))
def test_a_manifest_of_any_bytes_is_an_error_of_ours(checkpoint: Path, number: int) -> None:
    """Mutated again and again: only our own errors, and quickly."""
    draw, sound = random.Random(number), (checkpoint / MANIFEST).read_bytes()
    for _ in range(300):
        content = bytearray(sound)
        for _ in range(draw.randint(1, 8)):
            place = draw.randrange(len(content))
            content[place : place + draw.randint(0, 9)] = draw.randbytes(draw.randint(0, 9))
        (checkpoint / MANIFEST).write_bytes(content)
        try:
            problems = problems_of(checkpoint)
        except FledgeError:
            continue
        assert problems or bytes(content) == sound


CANARIES = {
    "WANDB_API_KEY": "canary-of-the-sink-4f1c",
    "HF_TOKEN": "canary-of-the-hub-77ab",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-cloud-90de",
    "HTTPS_PROXY": "http://someone:canary-of-the-proxy-12aa@127.0.0.1:9",
}


def test_no_secret_of_the_environment_is_written(
    tmp_path: Path, documents: TokenSet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    run_stage(tmp_path / "run", documents, stage_settings())
    out, err = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()) + out.encode() + err.encode()
    assert len(written) > 10_000
    assert b"canary" not in written
