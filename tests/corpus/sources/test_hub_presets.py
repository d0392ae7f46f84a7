from __future__ import annotations

import re
from pathlib import Path

import pytest

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.corpus.sources.hub_presets import PRESETS, Holding, dataset_of, holdings, license_of, listing
from fledge.corpus.sources.inputs import HUB_SUFFIXES, Fingerprints, localise, resolve
from fledge.corpus.sources.settings import HubSource, PythonDocsSource

from .servers import Hub

NEWS = PRESETS["cc-news"]
FILES = {f"plain_text/train-0000{number}.parquet": bytes([number]) * 1_000 for number in range(5)}


def held(cache_folder: Path, name: str = "cc-news") -> Holding:
    return next(held for held in holdings(cache_folder) if held.preset.name == name)


def test_every_preset_can_be_a_source() -> None:
    for name, preset in PRESETS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        given = {"content": preset.content, "form": preset.form, "fields": preset.fields}
        source = HubSource(name=name, repository=preset.repository, files=preset.files, **given)
        assert preset.files.endswith(HUB_SUFFIXES)
        dataset = dataset_of(HubSource(name=name, preset=name, content=preset.content))
        assert (dataset.files, dataset.fields, dataset.form) == (source.files, source.fields, source.form)


def test_a_preset_of_another_content_is_refused() -> None:
    with pytest.raises(DataError, match="preset alpaca holds conversations, and the source says documents") as error:
        dataset_of(HubSource(name="a", preset="alpaca"))
    assert error.value.remedy == "set content: conversations"


def test_a_source_narrows_its_preset() -> None:
    source = HubSource(name="a", preset="gutenberg", files="data/train-00000-*.parquet")
    dataset = dataset_of(source)
    assert (dataset.repository, dataset.files, dataset.fields) == (
        "sedthh/gutenberg_english",
        "data/train-00000-*.parquet",
        {"text": "TEXT"},
    )
    assert dataset_of(HubSource(name="a", preset="gutenberg", fields={"text": "body"})).fields == {"text": "body"}
    assert license_of(source) == PRESETS["gutenberg"].license
    assert license_of(HubSource(name="a", preset="gutenberg", license="mine")) == "mine"
    assert license_of(HubSource(name="a", repository="owner/name", files="*")) == "not stated"
    assert license_of(PythonDocsSource()) == "PSF-2.0"
    with pytest.raises(DataError, match=r"no preset 'fineweb2' \(there are fineweb, "):
        dataset_of(HubSource(name="a", preset="fineweb2"))


def test_what_is_downloaded_is_told(hub: Hub, tmp_path: Path) -> None:
    assert held(tmp_path) == Holding(NEWS, "nothing", 0, 0, None)
    hub.put(NEWS.repository, {**FILES, "README.md": b"#"})
    whole, part = HubSource(name="a", preset="cc-news"), HubSource(name="a", preset="cc-news", files="plain_text/train-0000[01]*")

    def fetch(source: HubSource, count: int) -> None:
        files = resolve(source, Fingerprints(None), cache_folder=tmp_path)
        localise(source, files[:count], tmp_path, 2)

    fetch(part, 1)
    assert held(tmp_path) == Holding(NEWS, "partial", 1, 1_000, None)
    fetch(whole, 3)
    assert held(tmp_path) == Holding(NEWS, "partial", 3, 3_000, 5)
    fetch(whole, 5)
    assert held(tmp_path) == Holding(NEWS, "complete", 5, 5_000, 5)
    assert held(tmp_path, "fineweb").state == "nothing"
    # A newer commit adds a file.
    hub.put(NEWS.repository, {**FILES, "plain_text/train-00005.parquet": b"new"})
    fetch(whole, 0)
    assert held(tmp_path) == Holding(NEWS, "partial", 5, 5_000, 6)
    for path in tmp_path.rglob("*.parquet"):
        disk.truncate(path, 10)
    assert held(tmp_path) == Holding(NEWS, "nothing", 0, 0, 6)


def test_the_table(hub: Hub, tmp_path: Path) -> None:
    hub.put(NEWS.repository, FILES)
    source = HubSource(name="a", preset="cc-news")
    localise(source, resolve(source, Fingerprints(None), cache_folder=tmp_path), tmp_path, 2)
    columns, rows = listing(tmp_path)
    assert [row[0] for row in rows] == list(PRESETS)
    assert all(len(row) == len(columns) for row in rows)
    table = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert table["cc-news"]["downloaded"] == "complete: 5 of 5 files, 5.0 kB"
    assert table["c4"]["downloaded"] == "nothing"
    assert table["c4"]["size"] == "326 GB"
    assert (table["gutenberg"]["content"], table["alpaca"]["content"]) == ("documents", "conversations")
    assert table["pile-uncopyrighted"]["tokens"] == "-"
