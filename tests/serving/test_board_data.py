"""What the board reads: whole, torn, cut and foreign files; states of runs; and nothing outside of a run."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from fledge.core import process
from fledge.core.metrics import SOURCE_TOKENS
from fledge.serving.board import comparison, details
from fledge.serving.board.curves import MOST_POINTS, Thinned, last_record, read_curves
from fledge.serving.board.folders import RunFolder, Runs
from fledge.serving.board.status import NO_LAST_WORD, status_of
from fledge.serving.errors import ApiError
from tests.serving.board_runs import STAGES, STARTED, append, begun, evaluated, finished, made, record, recorded, sampled


def run_at(path: Path) -> RunFolder:
    return RunFolder(path, STAGES)


# ---- curves


def test_only_what_was_appended_is_read_again(tmp_path: Path) -> None:
    append(tmp_path, record(1), record(2))
    path = tmp_path / "metrics.jsonl"
    first = read_curves(path)
    assert [step for step, _ in first.series["train/loss"].points()] == [1, 2] and not first.is_new_file
    nothing = read_curves(path, first.cursor)
    assert nothing.series == {} and nothing.cursor == first.cursor
    append(tmp_path, record(3))
    more = read_curves(path, first.cursor)
    assert [step for step, _ in more.series["train/loss"].points()] == [3] and not more.is_new_file


def test_a_line_that_is_not_ended_waits_until_it_is(tmp_path: Path) -> None:
    line = json.dumps(record(2))
    append(tmp_path, record(1), torn=line[:40])
    path = tmp_path / "metrics.jsonl"
    first = read_curves(path)
    assert first.last_step == 1 and first.passed_over_lines == 0
    with path.open("a") as file:
        file.write(f"{line[40:]}\n")
    assert read_curves(path, first.cursor).last_step == 2


def test_a_file_written_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    append(tmp_path, *(record(step) for step in range(1, 9)))
    path = tmp_path / "metrics.jsonl"
    cursor = read_curves(path).cursor
    kept = path.read_text().splitlines(keepends=True)[:4]
    (tmp_path / "other").write_text("".join(kept))
    (tmp_path / "other").replace(path)
    append(tmp_path, *(record(step) for step in range(5, 20)))  # longer than the cursor, so its length does not tell
    again = read_curves(path, cursor)
    assert again.is_new_file and [step for step, _ in again.series["train/loss"].points()] == list(range(1, 20))


@pytest.mark.parametrize("cursor", ["", "x", "1:2", "99:99999999", "-1:0", "0:0", "1" * 40 + ":0", "1:\u0665"])
def test_a_cursor_that_does_not_fit_reads_all(tmp_path: Path, cursor: str) -> None:
    append(tmp_path, record(1))
    assert read_curves(tmp_path / "metrics.jsonl", cursor).last_step == 1


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'garbage\n[]\n{"step": "1", "time": 0}\n\xff\xfe\n{"step": 1}\n')
    append(tmp_path, record(7, **{"train/loss": None, "text": "high", "flag": True, "huge": 10**400, "odd": float("nan")}))
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves.passed_over_lines == 5 and curves.last_step == 7
    assert curves.not_finite == {"train/loss": 1, "huge": 1, "odd": 1} and "text" not in curves.series and "huge" not in curves.series
    assert last_record(tmp_path / "metrics.jsonl", "train/loss") is None


def test_no_file_is_no_curves() -> None:
    assert read_curves(None).series == {} and last_record(None, "train/loss") is None


@pytest.mark.parametrize("count", [1, 2, MOST_POINTS // 2, MOST_POINTS // 2 + 1, 7_919, 100_000])
def test_thinning_keeps_order_ends_and_extremes(count: int) -> None:
    thinned = Thinned()
    for step in range(count):
        thinned.add((step, {count // 3: 1e9, count // 2: -1e9}.get(step, float(step % 7))))
    points = thinned.points()
    assert len(points) <= MOST_POINTS and [step for step, _ in points] == sorted(step for step, _ in points)
    if count > 6:
        assert max(value for _, value in points) == 1e9 and min(value for _, value in points) == -1e9
    if count <= MOST_POINTS // 2:
        assert [step for step, _ in points] == list(range(count))
    gaps = [after - before for (before, _), (after, _) in pairwise(points)]
    assert not gaps or max(gaps) <= 4 * count / MOST_POINTS + 4, "every part is equally fine"


def test_counters_of_sources_keep_the_same_steps_however_they_grow(tmp_path: Path) -> None:
    counters = {"web": lambda step: 8 * step, "books": lambda step: 8 * max(0, step - 3_000), "code": lambda step: step // 7}
    append(
        tmp_path,
        *(
            {"step": step, "time": STARTED, **{f"{SOURCE_TOKENS}{name}": count(step) for name, count in counters.items()}}
            for step in range(1, 5 * MOST_POINTS)
        ),
    )
    series = read_curves(tmp_path / "metrics.jsonl").series
    assert len({tuple(step for step, _ in thinned.points()) for thinned in series.values()}) == 1
    assert len(series) == 3


# ---- states


def test_a_run_that_holds_its_lock_is_running_and_says_how_long(tmp_path: Path) -> None:
    begun(tmp_path / "one")
    recorded(tmp_path / "one", None)
    with process.run_lock(tmp_path / "one"):
        status = status_of(run_at(tmp_path / "one"), now=STARTED + 50 + 20)
        assert (status.state, status.stage, status.step, status.seconds_left) == ("running", "pretrain", 50, 30.0)
        assert status.finished_stages == ("pack",) and status.problem == ""
        assert status_of(run_at(tmp_path / "one"), now=STARTED + 9_999).seconds_left == 0.0
    after = status_of(run_at(tmp_path / "one"))
    assert (after.state, after.problem, after.seconds_left) == ("stopped", NO_LAST_WORD, None)


@pytest.mark.parametrize("outcome", ["finished", "stopped", "failed"])
def test_a_run_that_has_ended_says_how(tmp_path: Path, outcome: str) -> None:
    begun(tmp_path / "one")
    recorded(tmp_path / "one", outcome, problem="no space left", remedy="free some")
    status = status_of(run_at(tmp_path / "one"))
    assert (status.state, status.problem, status.remedy) == (outcome, "no space left", "free some")


def test_runs_without_a_record_are_judged_by_what_lies_there(tmp_path: Path) -> None:
    begun(tmp_path / "begun")
    finished(tmp_path / "finished")
    made(tmp_path / "corpus-only" / "corpus" / "documents", "corpus")
    states = {run.name: status_of(run).state for run in Runs(tmp_path, STAGES).all()}
    assert states == {"begun": "stopped", "finished": "finished", "corpus-only": "finished"}


def test_a_copied_run_tells_the_same(tmp_path: Path) -> None:
    finished(tmp_path / "here" / "one")
    sampled(tmp_path / "here" / "one" / "pretrain", (10, "The bird", "sings"))
    evaluated(tmp_path / "here" / "one")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (run_at(tmp_path / place / "one") for place in ("here", "there"))
    for tell in (details.lineage, details.config, details.evaluations, lambda run: details.samples(run, "pretrain")):
        assert tell(here) == tell(there)
    assert details.stage_facts(here, "pretrain") == details.stage_facts(there, "pretrain")


# ---- parts of a run


def test_phases_have_their_steps_and_shares(tmp_path: Path) -> None:
    facts = details.stage_facts(run_at(begun(tmp_path / "one").parent), "pretrain")
    assert [(one["first_step"], one["last_step"], one["tokens"]) for one in facts["phases"]] == [(0, 60, 30_720), (60, 100, 20_480)]
    assert facts["phases"][0]["shares"] == {"web": 0.75, "books": 0.25}
    assert facts["shares"] == [{"name": "web", "tokens": 19_200, "share": 0.75}, {"name": "books", "tokens": 6_400, "share": 0.25}]


@pytest.mark.parametrize("plan", ["", "[]", "{}", '{"start": {"step": 0}, "phases": [{"steps": 1}]}', '{"start": {"step": "x"}}'])
def test_a_damaged_plan_is_no_phases(tmp_path: Path, plan: str) -> None:
    folder = begun(tmp_path / "one")
    (folder / "plan.json").write_text(plan)
    assert details.stage_facts(run_at(tmp_path / "one"), "pretrain")["phases"] == []


def test_evaluations_have_intervals_and_what_guessing_reaches(tmp_path: Path) -> None:
    evaluated(tmp_path / "one", answers=[{"question": "why?", "text": "because", "reference": "r", "stopped": True}])
    found = details.evaluations(run_at(tmp_path / "one"))
    assert [row["title"] for row in found["rows"]] == ["Bits per byte", "Yes/no (BoolQ's form)"]
    assert found["rows"][0]["cells"][0]["shown"] == "2.000 (1.900 to 2.100)"
    assert (found["rows"][1]["guessing"], found["rows"][1]["cells"][0]["shown"]) == ("50.0 %", "50.0 % (20.0 to 80.0) ?")
    assert found["answers"] == [{"checkpoint": "pretrain", "question": "why?", "text": "because"}]


@pytest.mark.parametrize("results", ["", "3", "{}", '{"evaluations": [{"name": "a", "scores": [{}]}]}', '{"evaluations": 5}'])
def test_damaged_results_are_none(tmp_path: Path, results: str) -> None:
    evaluated(tmp_path / "one")
    (tmp_path / "one" / "evaluate" / "results.json").write_text(results)
    assert details.evaluations(run_at(tmp_path / "one"))["rows"] == []


def test_lineage_names_places_of_the_run_and_marks_what_lies_elsewhere(tmp_path: Path) -> None:
    elsewhere = made(tmp_path / "shared" / "text", "corpus")
    tokenizer = made(tmp_path / "one" / "tokenizer", "tokenizer", {"corpus.0": elsewhere})
    made(tmp_path / "one" / "pack" / "documents", "tokens", {"tokenizer": tokenizer, "corpus.0": elsewhere})
    begun(tmp_path / "one")
    graph = details.lineage(run_at(tmp_path / "one"))
    nodes = {node["place"]: (node["is_own"], node["is_finished"]) for node in graph["nodes"]}
    other = f"corpus {elsewhere.id[:12]}"
    assert nodes == {other: (False, True), "tokenizer": (True, True), "pack/documents": (True, True), "pretrain": (True, False)}
    edges = {(edge["from"], edge["to"]) for edge in graph["edges"]}
    assert edges == {(other, "tokenizer"), (other, "pack/documents"), ("tokenizer", "pack/documents"), ("pack/documents", "pretrain")}


def test_config_has_origins_and_differences_are_found(tmp_path: Path) -> None:
    seed, more = ["pretrain.seed", 0, "default"], ["sft.seed", 1, "default"]
    for name, rate, rest in (("one", 0.1, [seed]), ("two", 0.2, [seed]), ("three", 0.1, [seed, more])):
        finished(tmp_path / name)
        recorded(tmp_path / name, "finished", config=[["pretrain.learning_rate", rate, "own.yaml:3"], *rest])
    one, two, three = (run_at(tmp_path / name) for name in ("one", "two", "three"))
    assert details.config(one)[0] == {"name": "pretrain.learning_rate", "value": 0.1, "origin": "own.yaml:3"}
    compared = comparison.compare([one, two])
    assert compared["differing"] == [{"name": "pretrain.learning_rate", "values": [0.1, 0.2]}]
    assert compared["stages"][0]["has"] == [True, True] and compared["stages"][0]["stats"][0]["loss"] == 2.5
    assert comparison.compare([one, three])["differing"] == [{"name": "sft", "values": ["not there", "there"]}]


# ---- nothing outside


def test_only_folders_of_runs_are_runs(tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "one")
    finished(tmp_path / "secret")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / ".hidden").mkdir()
    (tmp_path / "runs" / "file").write_text("x")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "secret")
    runs = Runs(tmp_path / "runs", STAGES)
    assert [run.name for run in runs.all()] == ["one"]
    for name in ("linked", "..", ".", "", "../secret", "one/../../secret", "ONE", "one\0", "/", str(tmp_path / "secret")):
        with pytest.raises(ApiError, match="no such run"):
            runs.named(name)
    for stage in ("..", "pretrain/..", "checkpoints", ""):
        with pytest.raises(ApiError, match="no such stage"):
            runs.stage("one", stage)
    assert Runs(tmp_path / "nowhere", STAGES).all() == []


def test_links_inside_a_run_lead_nowhere(tmp_path: Path) -> None:
    secret = begun(tmp_path / "secret")
    folder = begun(tmp_path / "runs" / "one")
    for name in ("metrics.jsonl", "plan.json", "stage.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret / name)
    (tmp_path / "runs" / "one" / "sft").symlink_to(secret)
    (tmp_path / "runs" / "one" / "run.json").symlink_to(secret / "stage.json")
    run = run_at(tmp_path / "runs" / "one")
    assert run.trained() == [] and run.file("sft", "metrics.jsonl") is None and run.json("pretrain", "plan.json") is None
    assert details.stage_facts(run, "pretrain")["phases"] == [] and details.config(run) == []
    assert status_of(run).step is None


def test_a_run_that_ends_while_it_is_looked_at_is_not_called_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path / "one")
    recorded(tmp_path / "one", None)

    def looks_and_it_ends(folder: Path) -> bool:
        recorded(folder, "stopped", problem="stopped after step 3")
        return False

    monkeypatch.setattr(process, "is_in_use", looks_and_it_ends)
    (tmp_path / "one" / ".lock").write_text("process 1")
    assert status_of(run_at(tmp_path / "one")).problem == "stopped after step 3"
