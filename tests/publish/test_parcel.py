"""What is sent of a result: kinds and names of files, and no path that leads out of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.core import artifact
from fledge.core.errors import ArtifactError, DataError
from fledge.publish.parcel import is_safe, leaves, parcel

from .results import tree, write_artifact, write_corpus, write_model, write_tokenizer, write_tokens


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "a/b/c.json", "LICENSE", "train.tokens.crc32", "x.y.parquet", "rows.jsonl.zst", "a.json.gz", "sub/Modelfile"],
)
def test_files_that_hold_data_are_safe(name: str) -> None:
    assert is_safe(name)


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "a.pt", "a.ckpt", "a.pt.gz", "a.gz", "a.pkl", "modeling.py", "run.sh", "a", "a.partial", "license"),
        *("../a.json", "a/../../b.json", "/a.json", ".hidden.json", ".git/config.json", "a//b.json", "./a.json", "a\\..\\b.json"),
    ],
)
def test_code_pickles_and_names_that_lead_elsewhere_are_not(name: str) -> None:
    assert not is_safe(name)


def test_a_path_leaves_a_run_or_does_not() -> None:
    assert not leaves("../../tokenizer", 2) and not leaves("../pretrain", 1)
    assert leaves("../../../data/tokens", 2) and leaves("../../x", 1) and leaves("/data/tokens", 2)


def test_what_lies_within_a_run_is_sent_byte_for_byte(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "run" / "pack" / "documents", write_tokenizer(tmp_path / "run" / "tokenizer"))
    items = {item.name: item for item in parcel(tokens)}
    sent = {name: item.source if isinstance(item.source, bytes) else item.source.read_bytes() for name, item in items.items()}
    assert sent == tree(tmp_path / "run")
    assert sum(item.digest.size_bytes for item in items.values()) == sum(map(len, sent.values()))


def test_a_path_out_of_the_run_is_not_sent_and_the_manifest_stays_valid(tmp_path: Path) -> None:
    parent = write_model(tmp_path / "secret-place" / "model")
    found = write_model(tmp_path / "run" / "sft" / "checkpoints" / "step-000005", 1, {"start_from": parent})
    item = next(item for item in parcel(found) if item.name == artifact.MANIFEST)
    assert isinstance(item.source, bytes) and b"secret-place" not in item.source
    copy = tmp_path / "copy"
    for name, written in tree(found.path).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(item.source if name == artifact.MANIFEST else written)
    opened = artifact.open_artifact(copy)
    assert opened.id == found.id and not artifact.verify(opened, exact=True)
    assert json.loads(item.source)["inputs"]["start_from"]["path"].endswith(f"elsewhere/checkpoint-{parent.id[:12]}")


def test_an_artifact_that_lies_in_no_run_tells_nothing_of_its_neighbours(tmp_path: Path) -> None:
    parent = write_model(tmp_path / "secret-place")
    made = write_model(tmp_path / "model", 1, {"source": parent})
    item = next(item for item in parcel(made) if item.name == artifact.MANIFEST)
    assert isinstance(item.source, bytes)
    assert json.loads(item.source)["inputs"]["source"]["path"] == f"../elsewhere/checkpoint-{parent.id[:12]}"


def test_the_place_of_an_adapters_base_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_artifact(tmp_path / "adapter", "checkpoint", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    parcel(artifact.open_artifact(tmp_path / "adapter"))
    assert "names the folder of its base" in capsys.readouterr().err
    write_model(tmp_path / "model")
    parcel(artifact.open_artifact(tmp_path / "model"))
    assert capsys.readouterr().err == ""


def test_a_tokenizer_from_elsewhere_comes_to_lie_in_its_place(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", write_tokenizer(tmp_path / "far" / "away" / "words"))
    items = {item.name: item for item in parcel(tokens)}
    assert {"tokenizer/tokenizer.json", "tokenizer/manifest.json", "pack/documents/tokens.json"} < items.keys()
    source = items["pack/documents/manifest.json"].source
    assert isinstance(source, bytes) and json.loads(source)["inputs"]["tokenizer"]["path"] == "../../tokenizer"


def test_a_damaged_result_is_not_sent(tmp_path: Path) -> None:
    found = write_corpus(tmp_path / "corpus")
    path = found.path / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"nothing is sent: .*train-00001"):
        parcel(found)


def test_another_tokenizer_in_the_place_of_the_one_packed_with_is_found(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", write_tokenizer(tmp_path / "words"))
    write_artifact(tmp_path / "others", "tokenizer", {"tokenizer.json": b"{}"})
    (tmp_path / "words").rename(tmp_path / "before")
    (tmp_path / "others").rename(tmp_path / "words")
    with pytest.raises(ArtifactError, match="is not the tokenizer"):
        parcel(tokens)


def test_a_folder_of_others_is_sent_if_it_holds_no_code(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", ".DS_Store"):
        (tmp_path / name).write_bytes(b"{}")
    assert [item.name for item in parcel(artifact.foreign(tmp_path, "huggingface"))] == ["config.json", "model.safetensors"]
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match=r"pytorch_model\.bin, which may run code"):
        parcel(artifact.foreign(tmp_path, "huggingface"))
