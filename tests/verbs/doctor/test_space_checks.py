"""What a run still writes, by the disk that it goes to: downloads and results may lie on two."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.recipe import Recipe
from fledge.stages.run import Run
from fledge.verbs.corpus_space import DOWNLOADS, TOKEN_DOWNLOADS, DiskUse
from fledge.verbs.doctor import space_checks
from fledge.verbs.doctor.space_checks import check_space, space_finding

RUN = Run(Recipe(), Path("runs/tiny"), "tiny.yaml")


def use(what: str, size_bytes: int | None, there_bytes: int = 0, folder: str = "runs/tiny") -> DiskUse:
    return DiskUse(what, size_bytes, "estimated", folder, there_bytes)


def test_what_lies_there_is_not_written_again() -> None:
    assert space_finding([use("corpus", 2_000)], 1_000, RUN).level == "problem"
    assert space_finding([use("corpus", 2_000, 1_000)], 1_000, RUN).level == "ok"
    more_than_expected = [use("work of the corpus", 1_000, 5_000), use("corpus", 2_000)]
    assert space_finding(more_than_expected, 1_000, RUN).level == "problem", "what is left over of one makes no room for the other"
    assert "corpus, whose size is not known" in space_finding([use("corpus", None)], 1_000, RUN).found


@pytest.mark.parametrize(
    ("what", "fix"),
    [
        (DOWNLOADS, "fledge run tiny.yaml corpus.cache_folder=/FOLDER"),
        (TOKEN_DOWNLOADS, "export HF_HOME=/FOLDER"),
        ("checkpoints of sft", "fledge run tiny.yaml --name /FOLDER/tiny"),
    ],
)
def test_the_fix_moves_what_needs_most(what: str, fix: str) -> None:
    assert space_finding([use("corpus", 10), use(what, 2_000, folder="there")], 1_000, RUN).fix == fix


def test_each_disk_is_judged_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        def __init__(self, place: Path) -> None:
            self.st_dev = self.free = 2_000 if str(place).startswith("/cache") else 1_000

        def stat(self) -> Disk:
            return self

    monkeypatch.setattr(space_checks, "nearest_folder", Disk)
    monkeypatch.setattr("shutil.disk_usage", lambda place: place)
    uses = [use(DOWNLOADS, 1_500, folder="/cache/fledge"), use("corpus", 600), use("token shards", 300)]
    assert [finding.level for finding in check_space(uses, RUN)] == ["ok", "ok"]
    downloads, results = check_space([use(DOWNLOADS, 2_500, folder="/cache/fledge"), use("corpus", 1_100)], RUN)
    assert "in /cache/fledge" in downloads.found and "cache_folder" in downloads.fix
    assert "in runs/tiny" in results.found and "--name" in results.fix
    monkeypatch.undo()
    [together] = check_space([use("corpus", 1, folder=str(tmp_path / "a" / "b")), use("token shards", 1, folder=str(tmp_path))], RUN)
    assert together.level == "ok"
