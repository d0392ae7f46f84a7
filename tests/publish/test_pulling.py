"""Taking from a stub of the hub: whole and right or not at all, goes on after a kill, nothing that could run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.core import artifact, disk
from fledge.core.errors import ArtifactError, DataError, MachineError
from fledge.publish import pulling
from fledge.publish.pulling import pull
from fledge.publish.pushing import push
from tests.command_line import Fledge, expect_error

from .hub_stub import Fault, Files, HubStub, Repo
from .results import content, tree, write_artifact, write_corpus, write_model


def put(hub: HubStub, files: Files, place: str = "models/me/small") -> Repo:
    repo = hub.repos.setdefault(place, Repo(private=False))
    repo.commit(files, "main", "by others")
    return repo


def take(folder: Path, name: str = "me/small") -> str:
    return pull(name, folder, None, "main")


def test_a_download_that_breaks_off_goes_on_at_its_byte(hub: HubStub, tmp_path: Path) -> None:
    put(hub, {"model.safetensors": content(0), "config.json": b"{}"})
    hub.fail("resolve/.*/model", Fault(send_bytes=10_000), Fault(status=500), Fault(send_bytes=20_000))
    take(tmp_path / "back")
    assert tree(tmp_path / "back") == {"model.safetensors": content(0), "config.json": b"{}"}
    assert [one.split()[1].split("-")[0] for one in hub.ranges if "model" in one] == ["0", "10000", "30000"]


def test_a_pull_that_was_ended_goes_on(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{number}.safetensors": content(number) for number in range(3)}
    put(hub, files)
    monkeypatch.setattr(pulling, "_AT_ONCE", 1)
    hub.fail("resolve/.*/1.safetensors", Fault(send_bytes=30_000), *[Fault(status=500)] * 50)
    with pytest.raises(MachineError, match=r"status 500 \(3 attempts\)"):
        take(tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert [path.name for path in sorted((tmp_path / "back.partial").iterdir())] == [".lock", "0.safetensors", "1.safetensors.partial"]
    hub.faults.clear()
    hub.ranges.clear()
    take(tmp_path / "back")
    assert tree(tmp_path / "back") == files
    assert [one.split("-")[0] for one in hub.ranges] == ["1.safetensors 30000", "2.safetensors 0"]
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_pages_are_taken_only_where_a_manifest_names_them(hub: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data card is one; what others put beside it may run scripts in a browser."""
    write_artifact(tmp_path / "corpus", "corpus", {"card.html": b"<p>card</p>", "stats.json": b"{}"})
    strange = {"page.html": b"<script>", "a/picture.svg": b"<svg/>", "notes.md": b"x"}
    named = {f"corpus/{name}": (tmp_path / "corpus" / name).read_bytes() for name in tree(tmp_path / "corpus")}
    put(hub, {**named, **strange, "corpus/other.html": b"<script>"})
    take(tmp_path / "back")
    assert tree(tmp_path / "back").keys() == {*named, "notes.md"}
    assert "a/picture.svg, corpus/other.html, page.html" in " ".join(capsys.readouterr().err.split())


def test_what_an_earlier_attempt_left_of_another_commit_is_replaced(hub: HubStub, tmp_path: Path) -> None:
    put(hub, {"model.safetensors": content(1), "config.json": b"{}"})
    partial = tmp_path / "back.partial"
    for name, left in (("model.safetensors", content(2)), ("old.json", b"{}"), ("config.json.partial", b"??")):
        disk.write_bytes(partial / name, left)
    take(tmp_path / "back")
    assert tree(tmp_path / "back") == {"model.safetensors": content(1), "config.json": b"{}"}


def test_a_wrong_byte_on_the_way_is_found_and_fetched_again(hub: HubStub, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    push(tmp_path / "corpus", "me/small", None, False, "main")
    hub.fail("resolve/.*/train-00001", Fault(flips=True))
    hub.fail("resolve/.*/DATA_CARD", Fault(flips=True))
    take(tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "corpus")
    hub.fail("resolve/.*/train-00001", *[Fault(flips=True)] * 9)
    with pytest.raises(DataError, match="came twice with the hash"):
        take(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_what_is_not_as_its_manifest_says_does_not_appear(hub: HubStub, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    push(tmp_path / "corpus", "me/small", None, False, "main")
    repo = hub.repos["datasets/me/small"]
    whole = repo.files
    for changed in ({**whole, "train-00000.parquet": content(5)}, {name: one for name, one in whole.items() if name != "DATA_CARD.md"}):
        repo.commit(changed, "main", "tampered")
        with pytest.raises(ArtifactError, match="not what its manifest says"):
            take(tmp_path / "back")
        assert not (tmp_path / "back").exists()
    manifest = json.loads(whole["manifest.json"])
    del manifest["files"]["DATA_CARD.md"]
    repo.commit({**whole, "manifest.json": json.dumps(manifest).encode()}, "main", "tampered")
    with pytest.raises(ArtifactError, match="checksum"):
        take(tmp_path / "back")


def test_files_that_could_run_are_not_taken(hub: HubStub, fledge: Fledge, tmp_path: Path) -> None:
    put(hub, {"model.safetensors": content(0), "pytorch_model.bin": b"pickle", "modeling.py": b"import os", ".gitattributes": b""})
    outcome = fledge("pull", "me/small", "back")
    assert "not taken" in outcome.noted and "pytorch_model.bin" in outcome.noted and "modeling.py" in outcome.noted
    assert tree(tmp_path / "back") == {"model.safetensors": content(0)}
    put(hub, {"pytorch_model.bin": b"pickle"}, "models/me/pickle")
    expect_error(fledge("pull", "me/pickle", "other"), 3, "nothing that can be taken", "pytorch_model.bin")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../outside.json", "a/../../outside.json", "/outside.json", "..\\outside.json"])
def test_a_name_that_leads_out_of_the_folder_is_refused(hub: HubStub, tmp_path: Path, name: str) -> None:
    put(hub, {"config.json": b"{}", name: b"{}"})
    with pytest.raises(DataError, match="lead out of its folder"):
        take(tmp_path / "in" / "back")
    assert not list(tmp_path.rglob("*.json"))


def test_a_manifest_of_a_pickle_is_refused(hub: HubStub, tmp_path: Path) -> None:
    """A file that its manifest names and that is not taken is missing."""
    write_model(tmp_path / "model")
    disk.write_bytes(tmp_path / "model" / "extra.bin", b"pickle")
    whole = artifact.open_artifact(tmp_path / "model").manifest
    with artifact.build(tmp_path / "bad", artifact.Request(whole.kind, whole.settings)) as (partial, _):
        for name, written in tree(tmp_path / "model").items():
            if name != "manifest.json":
                disk.write_bytes(partial / name, written)
    put(hub, tree(tmp_path / "bad"))
    with pytest.raises(ArtifactError, match=r"extra\.bin is missing"):
        take(tmp_path / "back")


def test_what_others_added_to_an_artifact_is_left_there(hub: HubStub, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    put(hub, {**tree(tmp_path / "model"), "README.md": b"# hand", "runs/x.json": b"{}"})
    take(tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "model")
    put(hub, {"config.json": b"{}", "README.md": b"# hand", "manifest.json": b'{"name": "an app"}'}, "models/me/others")
    take(tmp_path / "others", "me/others")
    assert tree(tmp_path / "others").keys() == {"config.json", "README.md", "manifest.json"}


def test_a_name_is_a_model_or_else_a_dataset(hub: HubStub, tmp_path: Path) -> None:
    put(hub, {"a.json": b"1"}, "datasets/me/small")
    assert "dataset me/small" in take(tmp_path / "one")
    put(hub, {"a.json": b"2"}, "models/me/small")
    assert "model me/small" in take(tmp_path / "two")
    pull("me/small", tmp_path / "three", "dataset", "main")
    assert [tree(tmp_path / name)["a.json"] for name in ("one", "two", "three")] == [b"1", b"2", b"1"]
    with pytest.raises(DataError, match="neither a model nor a dataset me/nothing"):
        take(tmp_path / "four", "me/nothing")
    with pytest.raises(DataError, match="model me/nothing"):
        pull("me/nothing", tmp_path / "four", "model", "main")


def test_an_earlier_commit_can_be_taken(hub: HubStub, tmp_path: Path) -> None:
    first = put(hub, {"a.json": b"1"}).branches["main"]
    put(hub, {"a.json": b"2"})
    pull("me/small", tmp_path / "back", None, first)
    assert tree(tmp_path / "back") == {"a.json": b"1"}
    with pytest.raises(DataError, match="nowhere"):
        pull("me/small", tmp_path / "other", None, "nowhere")


def test_a_place_that_is_taken_and_a_disk_that_is_full(
    hub: HubStub, fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, {"a.json": b"1"})
    disk.write_bytes(tmp_path / "back" / "a.json", b"mine")
    expect_error(fledge("pull", "me/small", "back"), 2, "back is already there")
    assert not hub.requests
    monkeypatch.setattr(pulling, "_SPACE_LEFT_BYTES", 1 << 62)
    expect_error(fledge("pull", "me/small", "other"), 5, "free", "are needed")
    assert tree(tmp_path / "back") == {"a.json": b"mine"}
