"""Secrets in the address of a source are used to read it, and are nowhere afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.core import artifact
from fledge.options import prepare
from fledge.stages import run_stage

from ..corpus.corpus_assembly import texts
from ..corpus.sources.servers import Site, impatient_site


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with impatient_site(monkeypatch) as site:
        yield site


def test_secrets_of_an_address_are_written_nowhere(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(30, words=60)).encode()
    site.put("/texts.jsonl", lines, etag="one")
    Path("recipe.yaml").write_text(
        "corpus: {cache_folder: cache, sources: [{kind: jsonl, name: web, cache: none, path: x}]}\n"
        "tokenizer: {vocabulary_size: 300}\npack: {}\n"
    )

    def make(name: str, secret: str) -> str:
        address = site.url.replace("://", f"://canary-user-{secret}:canary-word-{secret}@") + f"/texts.jsonl?token=canary-{secret}"
        run = prepare("recipe.yaml", [f"corpus.sources.0.path={address}"], name, small=False, no_wandb=False)
        for stage in ("corpus", "tokenizer", "pack"):
            run_stage(stage, run)  # type: ignore[arg-type]
        assert "canary" not in run.command and site.url.removeprefix("http://") in run.command
        return artifact.open_artifact(run.folder / "corpus" / "documents").id

    first = make("one", "4f1c")
    assert set(site.authorised) == {"/texts.jsonl"}, "it is asked for with what was given"
    assert make("two", "77ab") == first, "what is read decides, not who asks"
    assert make("one", "90de") == first
    site.authorised.clear()
    for path in (Path("runs/one/corpus"), *Path("runs/one/work/corpus").iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
    assert make("one", "90de") == first
    assert site.authorised, "what was looked up is read with what is given now"
    said = "".join(capfd.readouterr()).encode()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "recipe.yaml") + said
    assert len(written) > 10_000
    assert b"canary" not in written
