from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.core import artifact, disk
from fledge.core.artifact import Artifact, Request, request
from fledge.core.config import operation, settings
from fledge.core.errors import ArtifactError, MachineError

# From Python 3.12 on, a fork beside the threads of other libraries warns; these children only write files and exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

FILES = {"weights.bin": b"\x00\x01\x02" * 10, "deep/text": b"words"}


@settings
class Training:
    steps: int = 10
    rate: float = 0.1
    device: str = operation("cpu")


def build(folder: Path, wanted: Request, files: dict[str, bytes] = FILES) -> Artifact:
    with artifact.build(folder, wanted) as (partial, stats):
        for name, content in files.items():
            disk.write_bytes(partial / name, content)
        stats["rows"] = len(files)
    return artifact.open_artifact(folder)


def refused(folder: Path, wanted: Request) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        artifact.state(folder, wanted)
    return caught.value


def edit(path: Path, change: Any) -> None:
    """Change a manifest as someone would who also mends its checksum."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw.pop("checksum", None)
    change(raw)
    path.write_text(json.dumps({**raw, "checksum": artifact.hash_json(raw)}), encoding="utf-8")


# ---- building and asking again


def test_a_built_artifact_says_what_it_is(tmp_path: Path) -> None:
    wanted = request("corpus", Training(device="cuda"))
    made = build(tmp_path / "corpus", wanted)
    assert made.manifest.kind == "corpus"
    assert made.manifest.settings == {"steps": 10, "rate": 0.1}
    assert made.manifest.key == wanted.key
    assert made.stats == {"rows": 2}
    assert set(made.manifest.files) == set(FILES)
    assert artifact.verify(made) == []
    assert artifact.state(tmp_path / "corpus", request("corpus", Training(device="cpu"))) == "finished"


def test_the_key_is_what_was_asked_and_the_id_what_came_out(tmp_path: Path) -> None:
    one, same = build(tmp_path / "a", request("corpus", Training())), build(tmp_path / "b", request("corpus", Training()))
    other = build(tmp_path / "c", request("corpus", Training()), {"weights.bin": b"else"})
    assert one.id == same.id, "the place does not matter"
    assert other.manifest.key == one.manifest.key
    assert other.id != one.id
    keys = {
        request(kind, value, inputs).key
        for kind in ("corpus", "tokens")
        for value in (Training(), Training(steps=11))
        for inputs in (None, {"tokenizer": one}, {"tokenizer": other}, {"corpus": one})
    }
    assert len(keys) == 16
    assert request("t", Training(), {"tokenizer": one}).key == request("t", Training(), {"tokenizer": same}).key


def test_an_open_place_is_absent(tmp_path: Path) -> None:
    wanted = request("corpus", Training())
    assert artifact.state(tmp_path / "x", wanted) == "absent"
    (tmp_path / "x").mkdir()
    assert artifact.state(tmp_path / "x", wanted) == "absent"
    build(tmp_path / "x", wanted)
    assert artifact.state(tmp_path / "x", wanted) == "finished"


def test_a_place_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.doc").write_bytes(b"")
    assert "exists and is no corpus of ours" in refused(tmp_path / "x", request("corpus", Training())).problem
    (tmp_path / "file").write_bytes(b"")
    assert "exists and is no corpus of ours" in refused(tmp_path / "file", request("corpus", Training())).problem


def test_another_key_in_the_same_place_is_refused_with_the_difference(tmp_path: Path) -> None:
    tokenizer = build(tmp_path / "tokenizer", request("tokenizer", {}))
    other = build(tmp_path / "other", request("tokenizer", {}), {"a": b"a"})
    build(tmp_path / "x", request("training", Training(), {"tokenizer": tokenizer}))
    error = refused(tmp_path / "x", request("training", Training(steps=20), {"tokenizer": other}))
    assert f"(steps: 10 -> 20; input.tokenizer: '{tokenizer.id[:12]}' -> '{other.id[:12]}')" in error.problem
    assert "--name" in error.remedy
    assert "make it anew" in error.remedy
    assert "(kind of artifact: 'training' -> 'corpus'" in refused(tmp_path / "x", request("corpus", Training())).problem
    many = refused(tmp_path / "x", request("training", {f"s{index}": index for index in range(9)}, {"tokenizer": tokenizer}))
    assert "and 6 more" in many.problem
    long = refused(tmp_path / "x", request("training", {"steps": "x" * 1000, "rate": 0.1}, {"tokenizer": tokenizer}))
    assert len(long.problem) < 300


def test_a_finished_artifact_is_not_built_over(tmp_path: Path) -> None:
    wanted = request("corpus", Training())
    build(tmp_path / "x", wanted)
    with pytest.raises(MachineError, match="already there"):
        build(tmp_path / "x", wanted, {"a": b"other"})
    assert artifact.verify(artifact.open_artifact(tmp_path / "x", "corpus")) == []


# ---- long stages


def test_a_started_artifact_continues_and_finishes(tmp_path: Path) -> None:
    folder, wanted = tmp_path / "pretrain", request("training", Training())
    artifact.begin(folder, wanted)
    assert artifact.state(folder, wanted) == "started"
    disk.write_bytes(folder / "weights", b"w")
    artifact.begin(folder, wanted)
    assert artifact.state(folder, wanted) == "started"
    assert "(steps: 10 -> 11)" in refused(folder, request("training", Training(steps=11))).problem
    made = artifact.finish(folder, wanted, {"weights": disk.digest_file(folder / "weights")}, {"loss": 1.5, 3: "three", 10: "ten"})
    assert artifact.state(folder, wanted) == "finished"
    assert artifact.verify(made) == []
    assert made.stats == {"loss": 1.5, "3": "three", "10": "ten"}


def test_finishing_flushes_what_the_manifest_will_name_before_it_is_written(tmp_path: Path, operations: Any) -> None:
    folder, wanted = tmp_path / "pretrain", request("training", Training())
    artifact.begin(folder, wanted)
    disk.append_line(folder / "metrics.jsonl", "{}")
    digest = disk.digest_file(folder / "metrics.jsonl")
    operations.count(lambda: artifact.finish(folder, wanted, {"metrics.jsonl": digest}, {}))
    assert operations.seen[0] == ("fsync", folder / "metrics.jsonl")


def test_a_kill_while_beginning_leaves_an_open_place(tmp_path: Path, operations: Any) -> None:
    folder, wanted = tmp_path / "pretrain", request("training", Training())
    for index in range(operations.count(lambda: artifact.begin(folder, wanted))):
        operations.undisturbed()
        disk.remove(folder)
        assert operations.killed(lambda: artifact.begin(folder, wanted), index, by_signal=True)
        assert artifact.state(folder, wanted) in {"absent", "started"}
        artifact.begin(folder, wanted)
        assert artifact.state(folder, wanted) == "started"


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_kill_at_any_operation_of_a_build_leaves_nothing_or_all(tmp_path: Path, operations: Any, by_signal: bool) -> None:
    folder, wanted = tmp_path / "corpus", request("corpus", Training())
    count = operations.count(lambda: build(folder, wanted))
    assert count > 15
    for index in range(count):
        operations.undisturbed()
        disk.remove(folder)
        assert operations.killed(lambda: build(folder, wanted), index, by_signal)
        found = artifact.state(folder, wanted)
        assert found == ("absent" if index < count - 1 else "finished")
        operations.undisturbed()
        made = build(folder, wanted) if found == "absent" else artifact.open_artifact(folder)
        assert artifact.verify(made) == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_a_full_disk_at_any_operation_of_a_build_leaves_nothing_or_all(tmp_path: Path, operations: Any) -> None:
    folder, wanted = tmp_path / "corpus", request("corpus", Training())
    for index in range(operations.count(lambda: build(folder, wanted)) - 1):
        operations.undisturbed()
        disk.remove(folder)
        operations.fill_disk_at(index)
        with pytest.raises(MachineError, match="no space left"):
            build(folder, wanted)
        assert artifact.state(folder, wanted) == "absent"
        assert list(tmp_path.iterdir()) == []


# ---- damage


def test_an_absent_or_another_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no finished tokenizer artifact\nrun the stage that makes it"):
        artifact.open_artifact(tmp_path, "tokenizer")
    build(tmp_path / "x", request("corpus", Training()))
    with pytest.raises(ArtifactError, match="is a corpus, not a tokenizer"):
        artifact.open_artifact(tmp_path / "x", "tokenizer")


def test_a_missing_or_cut_file_is_found_when_opening(tmp_path: Path) -> None:
    wanted = request("corpus", Training())
    made = build(tmp_path / "x", wanted)
    disk.truncate(tmp_path / "x" / "weights.bin", 3)
    assert "weights.bin is 3 bytes long, the manifest says 30 bytes" in refused(tmp_path / "x", wanted).problem
    disk.remove(tmp_path / "x" / "weights.bin")
    assert "weights.bin is missing" in refused(tmp_path / "x", wanted).problem
    assert artifact.verify(made) == [f"{tmp_path / 'x' / 'weights.bin'} is missing"]


def flipped(content: bytes) -> Iterator[bytes]:
    """The content with one bit flipped, for every byte."""
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        yield bytes(damaged)


def test_verify_finds_a_flipped_bit_in_any_byte_of_any_file(tmp_path: Path) -> None:
    made = build(tmp_path / "x", request("corpus", Training()))
    for name in FILES:
        path, content = tmp_path / "x" / name, FILES[name]
        for damaged in flipped(content):
            path.write_bytes(damaged)
            assert len(artifact.verify(made)) == 1
        path.write_bytes(content)
    assert artifact.verify(made) == []


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "x", request("corpus", Training()), {"a": b"a"})
    path = tmp_path / "x" / "manifest.json"
    content = path.read_bytes()
    for damaged in flipped(content):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            artifact.open_artifact(tmp_path / "x")
    path.write_bytes(content)
    artifact.open_artifact(tmp_path / "x")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "{}", '{"format_version": 1}', '{"format_version": 1, "checksum": "x"}'])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest.json"):
        artifact.open_artifact(tmp_path)
    disk.remove(tmp_path / "manifest.json")
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"stage.json"):
        artifact.state(tmp_path, request("training", Training()))


def test_a_manifest_of_a_later_fledge_is_refused_by_its_format(tmp_path: Path) -> None:
    build(tmp_path / "x", request("corpus", Training()))
    edit(tmp_path / "x" / "manifest.json", lambda raw: raw.update(format_version=2))
    with pytest.raises(ArtifactError, match="has format 2, this Fledge reads 1"):
        artifact.open_artifact(tmp_path / "x")


def test_a_tampered_manifest_does_not_verify_even_with_a_mended_checksum(tmp_path: Path) -> None:
    build(tmp_path / "x", request("corpus", Training()))
    path = tmp_path / "x" / "manifest.json"
    edit(path, lambda raw: raw["settings"].update(steps=11))
    assert artifact.verify(artifact.open_artifact(tmp_path / "x")) == [f"{path}: the key does not follow from the settings and the inputs"]
    (tmp_path / "x" / "deep" / "text").write_bytes(b"lies!")
    lie = disk.digest_file(tmp_path / "x" / "deep" / "text")
    edit(path, lambda raw: raw["files"]["deep/text"].update(sha256=lie.sha256))
    assert f"{path}: the id does not follow from the key and the files" in artifact.verify(artifact.open_artifact(tmp_path / "x"))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    build(tmp_path / "x", request("corpus", Training()))
    edit(tmp_path / "x" / "manifest.json", lambda raw: raw["files"].update({name: {"size_bytes": 1, "sha256": ""}}))
    with pytest.raises(ArtifactError, match="names a file outside its folder"):
        artifact.open_artifact(tmp_path / "x")


# ---- lineage


def chain(runs: Path) -> Artifact:
    corpus = build(runs / "corpus" / "documents", request("corpus", Training()))
    tokenizer = build(runs / "tokenizer", request("tokenizer", {}, {"corpus": corpus}))
    return build(runs / "pack", request("tokens", {}, {"corpus": corpus, "tokenizer": tokenizer}))


def test_lineage_goes_down_to_the_source(tmp_path: Path) -> None:
    found = list(artifact.lineage(chain(tmp_path / "runs")))
    assert [(depth, role, given.kind) for depth, role, given, _ in found] == [
        (1, "corpus", "corpus"),
        (1, "tokenizer", "tokenizer"),
        (2, "corpus", "corpus"),
    ]
    assert all(there is not None and there.id == given.id for _, _, given, there in found)


def test_a_moved_run_keeps_its_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chain(Path("runs"))
    shutil.move("runs", "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = list(artifact.lineage(artifact.open_artifact(Path("pack"))))
    assert [there is not None for *_, there in found] == [True, True, True]


def test_what_is_gone_or_replaced_is_not_there(tmp_path: Path) -> None:
    pack = chain(tmp_path / "runs")
    disk.remove(tmp_path / "runs" / "tokenizer")
    build(tmp_path / "runs" / "tokenizer", request("tokenizer", {}), {"a": b"other"})
    there = {role: found for depth, role, _, found in artifact.lineage(pack) if depth == 1}
    assert there["corpus"] is not None
    assert there["tokenizer"] is None
    disk.remove(tmp_path / "runs" / "corpus")
    assert all(found is None for *_, found in artifact.lineage(pack))


def test_a_folder_of_others_is_an_input_known_by_its_files(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    disk.write_bytes(theirs / "model.safetensors", b"weights")
    disk.write_bytes(theirs / ".cache" / "lock", b"")
    given = artifact.foreign(theirs, "huggingface")
    assert list(given.manifest.files) == ["model.safetensors"]
    made = build(tmp_path / "sft", request("training", {}, {"start_from": given}))
    assert [found.id for *_, found in artifact.lineage(made) if found] == [given.id]
    disk.write_bytes(theirs / ".cache" / "lock", b"changed")
    assert artifact.foreign(theirs, "huggingface").id == given.id
    disk.write_bytes(theirs / "model.safetensors", b"weighty")
    assert artifact.foreign(theirs, "huggingface").id != given.id
    assert [found for *_, found in artifact.lineage(made)] == [None]
    with pytest.raises(ArtifactError, match="there is no folder"):
        artifact.foreign(tmp_path / "absent", "huggingface")


def test_the_key_of_a_damaged_artifact_can_be_read(tmp_path: Path) -> None:
    wanted = request("corpus", Training())
    build(tmp_path / "x", wanted)
    disk.remove(tmp_path / "x" / "weights.bin")
    assert artifact.read_key(tmp_path / "x" / "manifest.json") == wanted.key
    artifact.begin(tmp_path / "y", wanted)
    assert artifact.read_key(tmp_path / "y" / "stage.json") == wanted.key
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.read_key(tmp_path / "z" / "manifest.json")
