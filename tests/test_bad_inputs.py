"""Bad inputs as a user gives them: each is refused in two lines with its exit code, or survived and counted; none is a traceback.

ROWS lists every kind of bad input that concerns configuration, corpus, tokenizer, shards, checkpoints and training, with the tests that
hold it; APART those that cannot happen here, with the reason. What no test of a part holds as the user meets it is here, through the
command line's own entry, in this process.
"""

from __future__ import annotations

import ast
import errno
import functools
import gzip
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from fledge import cli
from fledge.core import disk
from fledge.core.errors import CheckpointError
from fledge.corpus.sources import unpacking
from fledge.model.folder import load_model, save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings

HERE = "tests/test_bad_inputs.py"

RECIPES = f"{HERE}::test_a_file_that_is_no_recipe_is_refused"
VALUES = f"{HERE}::test_a_value_that_cannot_be_is_named"
PLACES = f"{HERE}::test_a_place_that_cannot_be_written_is_named"
SOURCES = f"{HERE}::test_a_source_that_cannot_be_read_is_named"
LINES = f"{HERE}::test_bad_lines_are_listed_and_the_others_kept"
SHARDS = f"{HERE}::test_a_damaged_token_set_ends_training_before_it_begins"
STARTS = f"{HERE}::test_a_start_that_is_no_checkpoint_is_named"
WEIGHTS = f"{HERE}::test_weights_that_cannot_be_are_refused"

ROWS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("an unknown key", (VALUES, "tests/core/test_config.py::test_errors_name_key_value_place_and_what_to_do")),
    2: ("1e-4, a string in YAML 1.1", ("tests/core/test_config.py::test_scalars_follow_yaml_1_2",)),
    3: ("a learning rate that is NaN, negative or infinite", (VALUES,)),
    4: ("a key given twice", (RECIPES, "tests/core/test_config.py::test_what_is_no_recipe_is_refused")),
    5: ("a nest of aliases", (RECIPES, "tests/core/test_config.py::test_nests_of_aliases_are_refused")),
    6: ("a tag that would run code", (RECIPES, "tests/core/test_config.py::test_what_is_no_recipe_is_refused")),
    7: ("an empty file, or a recipe without stages", (RECIPES, f"{HERE}::test_a_run_without_stages_is_refused")),
    8: ("tabs and broken indents", (RECIPES,)),
    9: (
        "a width that the heads do not divide",
        (VALUES, "tests/model/test_model_settings.py::test_shapes_that_cannot_be_are_refused_with_their_values"),
    ),
    10: (
        "a batch that processes and micro-batches do not divide: it is computed all the same, and the waste is told",
        (
            "tests/training/test_batches.py::test_missing_rows_are_rows_without_targets",
            "tests/training/test_batches.py::test_processes_read_equally_many_micro_batches_and_all_rows",
            "tests/training/test_forecast.py::test_a_batch_that_does_not_divide_is_named",
        ),
    ),
    11: ("rows longer than the context", (VALUES, "tests/stages/test_stages.py::test_rows_longer_than_the_context_are_refused_at_once")),
    13: ("zero, text or true for a number of steps", (VALUES,)),
    14: (
        "a place that is taken",
        (
            f"{HERE}::test_what_lies_in_the_way_is_never_overwritten",
            "tests/test_cli.py::test_the_same_place_asked_for_differently_is_refused_and_force_moves_it_aside",
        ),
    ),
    15: ("a folder that cannot be written, a file in its place", (PLACES,)),
    16: ("a recipe of a gigabyte, a folder, a pipe, binary", (RECIPES, f"{HERE}::test_a_pipe_is_never_waited_for")),
    18: ("a misspelt recipe or dataset", (VALUES, f"{HERE}::test_a_misspelt_recipe_is_told_the_closest")),
    19: ("a line that is no JSON", (LINES,)),
    20: ("a line that is a list or a number", (LINES,)),
    21: ("a line without the key", (LINES, SOURCES)),
    22: ("a text that is null, a number or a list", (LINES,)),
    23: ("an empty text", (LINES,)),
    24: ("bytes that are no UTF-8", (LINES,)),
    25: (
        "a byte order mark",
        (
            "tests/corpus/sources/test_json_lines.py::test_what_is_allowed_passes",
            "tests/corpus/sources/test_text_files.py::test_line_ends_and_a_byte_order_mark_make_no_difference",
        ),
    ),
    26: ("UTF-16", (SOURCES,)),
    27: ("half a surrogate pair", (LINES,)),
    28: (
        "NUL and control characters",
        (
            "tests/corpus/sources/test_json_lines.py::test_what_is_allowed_passes",
            "tests/core/test_console.py::test_control_characters_are_shown_not_sent",
        ),
    ),
    29: (
        "line ends of other systems",
        ("tests/corpus/sources/test_text_files.py::test_line_ends_and_a_byte_order_mark_make_no_difference",),
    ),
    30: ("no line end at the end", (LINES, "tests/corpus/sources/test_json_lines.py::test_what_is_allowed_passes")),
    31: ("a last line cut off", ("tests/corpus/sources/test_json_lines.py::test_a_last_line_cut_off_is_rejected",)),
    32: (
        "a line without end",
        (
            "tests/corpus/sources/test_json_lines.py::test_a_line_longer_than_the_limit_is_rejected",
            "tests/corpus/sources/test_reading.py::test_a_bomb_costs_little_memory_and_time",
        ),
    ),
    33: ("a very long document", ("tests/corpus/sources/test_text_files.py::test_a_long_file_becomes_several_documents",)),
    34: ("JSON nested without end", (LINES, "tests/corpus/sources/test_json_lines.py::test_both_parsers_agree_on_the_depth")),
    35: ("numbers too long, NaN", (LINES,)),
    36: ("a JSON key given twice: the last counts", ("tests/corpus/sources/test_json_lines.py::test_what_is_allowed_passes",)),
    37: (
        "a gzip file cut off or damaged",
        (SOURCES, "tests/corpus/sources/test_json_lines.py::test_a_damaged_compressed_file_is_refused_after_its_good_lines"),
    ),
    38: ("several members, and bytes behind the last", ("tests/corpus/sources/test_json_lines.py::test_several_members_are_one_file",)),
    39: ("a zstd window of 2 GiB", (SOURCES, "tests/corpus/sources/test_unpacking.py::test_the_window_of_zstd_is_limited")),
    40: ("zip and tar with paths that lead outside: no archive is ever unpacked", (SOURCES,)),
    41: ("what expands without end", (f"{HERE}::test_what_expands_without_end_is_given_up",)),
    42: (
        "Parquet without the column, of another type, cut off",
        (SOURCES, "tests/corpus/sources/test_parquet_files.py::test_a_damaged_file_is_named"),
    ),
    43: (
        "a file that changes or vanishes while it is read",
        ("tests/corpus/sources/test_json_lines.py::test_a_file_that_is_gone_or_changes_is_refused",),
    ),
    44: (
        "unreadable files, circles of links, globs without a match",
        (
            f"{HERE}::test_a_source_that_is_not_there_is_named",
            "tests/corpus/sources/test_source_files.py::test_a_circle_of_links_ends",
            "tests/corpus/sources/test_source_files.py::test_what_may_not_be_listed_is_named",
        ),
    ),
    45: ("the same file twice", (f"{HERE}::test_a_file_given_twice_counts_once_and_is_told",)),
    46: (
        "file names with line ends, quotes and any bytes",
        (
            f"{HERE}::test_a_file_name_cannot_forge_a_line",
            "tests/corpus/sources/test_source_files.py::test_a_file_name_of_any_bytes_becomes_text",
        ),
    ),
    47: ("no documents left", (SOURCES, "tests/corpus/test_factory.py::test_a_source_of_which_nothing_is_left_is_an_error_with_counts")),
    48: ("a tokenizer without text", ("tests/tokens/test_trainers.py::test_no_text_is_an_error",)),
    49: ("a vocabulary smaller than bytes and control tokens", (VALUES,)),
    50: (
        "a vocabulary that the text cannot fill",
        ("tests/tokens/test_trainers.py::test_a_vocabulary_the_text_cannot_fill_becomes_smaller_with_a_warning",),
    ),
    51: ("a control token twice or without text", ("tests/tokens/test_tokenizer.py::test_a_broken_tokenizer_is_refused_naming_the_field",)),
    52: (
        "tokenizer.json cut, no JSON, or at odds with itself",
        (
            f"{HERE}::test_a_tokenizer_that_cannot_be_used_is_named",
            "tests/tokens/test_tokenizer.py::test_a_broken_tokenizer_is_refused_naming_the_field",
            "tests/tokens/test_importing.py::test_an_unsafe_or_lossy_file_is_refused_naming_the_field",
        ),
    ),
    53: ("missing single-byte tokens", ("tests/tokens/test_tokenizer.py::test_a_broken_tokenizer_is_refused_naming_the_field",)),
    54: ("a pickled tokenizer", (f"{HERE}::test_a_tokenizer_that_cannot_be_used_is_named",)),
    57: (
        "control tokens spelt in a text",
        (
            "tests/tokens/test_tokenizer.py::test_no_text_becomes_a_special_id",
            "tests/tokens/test_chat.py::test_no_message_can_forge_a_turn",
        ),
    ),
    58: ("a megabyte of one letter", ("tests/tokens/test_engines.py::test_a_megabyte_of_one_thing_takes_two_seconds_at_most",)),
    59: ("a shard a byte short or long", (SHARDS, "tests/tokens/test_shards.py::test_a_damaged_shard_is_refused_naming_what_was_expected")),
    60: ("an odd length for uint16", (SHARDS, "tests/tokens/test_plain_bin.py::test_what_does_not_fit_is_refused")),
    61: (
        "another magic, version, type or byte order",
        (SHARDS, "tests/tokens/test_shards.py::test_a_damaged_shard_is_refused_naming_what_was_expected"),
    ),
    62: (
        "ids outside the vocabulary",
        (
            "tests/tokens/test_plain_bin.py::test_an_id_outside_the_vocabulary_is_named_with_its_place",
            "tests/tokens/test_shards.py::test_a_description_that_does_not_fit_is_refused_naming_file_and_field",
        ),
    ),
    63: (
        "a shard that is missing, not named, named twice",
        (SHARDS, "tests/tokens/test_shards.py::test_a_description_that_does_not_fit_is_refused_naming_file_and_field"),
    ),
    64: (
        "counts that are not the file's",
        ("tests/tokens/test_shards.py::test_a_description_that_does_not_fit_is_refused_naming_file_and_field",),
    ),
    65: ("a flipped bit", (SHARDS, "tests/training/test_batches.py::test_a_damaged_block_is_found_by_the_step_that_first_uses_it")),
    66: ("another tokenizer", ("tests/stages/test_stages.py::test_another_tokenizer_is_refused_by_hash",)),
    67: (
        "fewer tokens than a row: padded and trained on; nothing at all is refused",
        ("tests/stages/test_stages.py::test_the_smallest_corpora_train",),
    ),
    68: ("a document on both sides", ("tests/stages/test_pack_stage.py::test_a_document_on_both_sides_stops_the_packing",)),
    69: (
        "a shard cut short while it is used",
        (
            "tests/training/test_batches.py::test_a_shard_that_is_cut_short_while_training_reads_it_names_the_step",
            "tests/tokens/test_blocks.py::test_a_file_that_is_cut_short_is_an_error_and_never_a_signal",
        ),
    ),
    70: (
        "a path that leads outside",
        (
            "tests/tokens/test_shards.py::test_a_description_that_does_not_fit_is_refused_naming_file_and_field",
            "tests/core/test_artifact.py::test_a_manifest_that_points_outside_is_refused",
        ),
    ),
    71: (
        "a folder without a finished checkpoint, a file",
        (STARTS, "tests/training/test_checkpoint.py::test_leftovers_of_a_killed_process_are_swept_away"),
    ),
    72: (
        "the newest checkpoint damaged",
        ("tests/training/test_checkpoint.py::test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used",),
    ),
    73: (
        "all checkpoints damaged",
        ("tests/training/test_checkpoint.py::test_only_damaged_checkpoints_are_an_error_also_the_second_time",),
    ),
    74: (
        "a checkpoint of another shape",
        (
            "tests/training/test_checkpoint.py::test_a_model_of_another_shape_is_refused",
            "tests/model/test_folder.py::test_weights_of_another_shape_are_listed_five_at_most",
        ),
    ),
    75: ("a later format", ("tests/core/test_artifact.py::test_a_manifest_of_a_later_fledge_is_refused_by_its_format",)),
    76: ("pickled weights", (STARTS, "tests/model/test_folder.py::test_pickled_weights_are_never_opened")),
    77: ("safetensors with a header that lies", (WEIGHTS, "tests/model/test_folder.py::test_weights_cut_short_are_refused")),
    78: (
        "an index that names files elsewhere or missing ones",
        (
            "tests/model/test_folder.py::test_an_index_may_only_name_files_of_its_folder",
            "tests/model/test_folder.py::test_a_shard_that_is_missing_is_named",
        ),
    ),
    79: (
        "weights that are not finite",
        (f"{HERE}::test_weights_that_are_not_finite_are_named", "tests/training/test_checkpoint.py::test_what_is_not_finite_is_not_saved"),
    ),
    80: ("a full disk", ("tests/training/test_checkpoint.py::test_a_full_disk_is_said_before_the_first_step",)),
    81: (
        "memory that runs out",
        (
            "tests/training/test_preparation.py::test_the_micro_batch_is_halved_until_it_fits",
            "tests/training/test_preparation.py::test_one_row_that_does_not_fit_is_an_error",
        ),
    ),
    82: ("no GPU though asked for", (f"{HERE}::test_a_gpu_that_is_not_there_is_told",)),
    83: (
        "conversations without an answer, of other roles, empty, of no text",
        (f"{HERE}::test_unusable_conversations_and_pairs_are_told", "tests/corpus/sources/test_records.py::test_malformed_conversations"),
    ),
    84: (
        "batches with nothing to learn",
        (
            "tests/training/test_trainer.py::test_a_batch_without_targets_is_a_step_without_gradient",
            "tests/training/test_batches.py::test_a_set_with_nothing_to_learn_is_refused",
        ),
    ),
    85: (
        "conversations longer than a row",
        (
            "tests/tokens/test_packing.py::test_conversations_longer_than_a_row_are_left_out_and_counted",
            "tests/tokens/test_packing.py::test_a_conversation_that_is_too_long_keeps_the_exchanges_that_fit",
        ),
    ),
    86: (
        "pairs of equal, missing or empty answers",
        (f"{HERE}::test_unusable_conversations_and_pairs_are_told", "tests/corpus/sources/test_records.py::test_malformed_preferences"),
    ),
    89: (
        "a clock set back: records are ordered and cut by step, not by time",
        (
            "tests/core/test_metrics.py::test_a_run_killed_many_times_reads_as_one",
            "tests/core/test_metrics.py::test_resuming_cuts_what_was_not_saved",
        ),
    ),
}
"""What is wrong, and the tests that hold the answer, by the row of the list of bad inputs."""

APART: dict[int, str] = {
    12: "a recipe has no vocabulary of the model: it is the tokenizer's, and model.vocab_size is an unknown key",
    17: "no setting is read from the environment; a dotted override of a key that is not there is row 1",
    55: "no chat template is ever run: Fledge writes templates for other programs and renders its own formats without Jinja",
    56: "as row 55",
    87: "there are no adapters",
    88: "there are no adapters",
}


def test_every_row_is_held_or_set_apart() -> None:
    assert sorted([*ROWS, *APART]) == list(range(1, 90))


def test_every_test_that_is_named_is_there() -> None:
    root = Path(__file__).parent.parent
    for row, (_, tests) in ROWS.items():
        assert tests, row
        for test in tests:
            path, _, name = test.partition("::")
            assert name in functions_of(root / path), f"row {row}: {test}"


@functools.cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


# ---- the command line, in this process


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    said: str
    noted: str


Fledge = Callable[..., Outcome]


@pytest.fixture
def fledge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fledge:
    """`fledge ARGUMENTS` in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_fledge, capsys)


def run_fledge(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli._application()(list(arguments), prog_name="fledge")
    captured = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), captured.out, captured.err)


def expect_error(outcome: Outcome, exit_code: int, *words: str) -> None:
    """Two lines, the last ones, with these words in their order."""
    assert outcome.exit_code == exit_code, outcome.noted
    problem, remedy = outcome.noted.splitlines()[-2:]
    assert problem.startswith("error: ") and remedy.startswith("  fix: ") and len(remedy) > len("  fix: ")
    place = 0
    for word in words:
        found = f"{problem}\n{remedy}".find(word, place)
        assert found >= 0, f"{word!r} is not in its place in {problem!r}, {remedy!r}"
        place = found + len(word)


# ---- recipes and values

NEST = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("tokenizer: {}\npack: {}\ntokenizer: {}\n", ("bad.yaml:3", "'tokenizer' is given twice")),
        (NEST, ("100,000 values",)),
        ("a: &a 1\nb: [" + "*a," * 101 + "]\n", ("more than 100 aliases",)),
        ("question: !!python/object/apply:os.system ['touch ran']\n", ("bad.yaml:1", "!!python/object/apply:os.system is refused")),
        ("", ("is empty", "fledge config quickstart")),
        ("pack:\n\tsequence_length: 8\n", ("line 2, column 1", "indent with spaces")),
        ("pack:\n  seed: 1\n sequence_length: 8\n", ("line 3, column 2",)),
        (b"\x00\x9f\x92\x96" * 9, ("bad.yaml", "not UTF-8")),
        (bytes(99), ("bad.yaml", "not valid YAML")),
        (1 << 30, ("1,073,741,824 bytes", "a recipe")),
        (None, ("is a folder", ".yaml")),
    ],
    ids=["twice", "nest", "aliases", "tag", "empty", "tab", "indent", "binary", "zeros", "gigabyte", "folder"],
)
def test_a_file_that_is_no_recipe_is_refused(fledge: Fledge, content: str | bytes | int | None, words: tuple[str, ...]) -> None:
    path = Path("bad.yaml")
    if content is None:
        path.mkdir()
    elif isinstance(content, int):
        with path.open("wb") as file:
            file.truncate(content)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    expect_error(fledge("run", "bad.yaml"), 2, *words)
    assert [entry.name for entry in Path.cwd().iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("extended", [False, True])
def test_a_pipe_is_never_waited_for(fledge: Fledge, extended: bool) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo("pipe.yaml")
    os.mkfifo("pipe.jsonl")
    Path("child.yaml").write_text("extends: pipe.yaml\n")
    expect_error(fledge("run", "child.yaml" if extended else "pipe.yaml"), 2, "pipe.yaml is a pipe or a device")
    expect_error(corpus(fledge, "pipe.jsonl", "jsonl"), 3, "pipe.jsonl is a pipe or a device")


def test_a_run_without_stages_is_refused(fledge: Fledge) -> None:
    Path("bad.yaml").write_text("{}\n")
    expect_error(fledge("run", "bad.yaml"), 2, "none of the stages corpus, tokenizer")
    expect_error(fledge("run", "own-text", "--from", "sft", "--to", "dpo"), 2, "none of the stages sft, score, dpo")
    Path("bad.yaml").write_text("corpus: {}\n")
    expect_error(fledge("run", "bad.yaml"), 2, "corpus.sources is required and missing")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.hidden_siez=8", ("unknown key model.hidden_siez", "did you mean model.hidden_size?")),
        ("model.vocab_size=77", ("unknown key model.vocab_size",)),
        ("pretrain.learning_rate=nan", ("pretrain.learning_rate", "valid number", "'nan'")),
        ("pretrain.learning_rate=.nan", ("pretrain.learning_rate", "valid number", "'.nan'")),
        ("pretrain.learning_rate=1e999", ("pretrain.learning_rate", "finite number", "inf")),
        ("pretrain.learning_rate=-1", ("pretrain.learning_rate must be above 0, not -1.0",)),
        ("model.hidden_size=250", ("hidden_size 250", "num_attention_heads 4")),
        ("pretrain.sequence_length=99999", ("pretrain.sequence_length is 99999", "model.max_position_embeddings is 256")),
        ("pretrain.steps=0", ("pretrain.steps must be at least 1, not 0",)),
        ('pretrain.steps="12"', ("pretrain.steps", "valid integer", "'12'")),
        ("pretrain.steps=true", ("pretrain.steps", "valid integer", "True")),
        ("tokenizer.vocabulary_size=200", ("at least 260 (256 bytes and 4 special tokens), not 200",)),
    ],
)
def test_a_value_that_cannot_be_is_named(fledge: Fledge, override: str, words: tuple[str, ...]) -> None:
    expect_error(fledge("run", "quickstart", override), 2, *words)
    assert not list(Path.cwd().iterdir())


def test_a_misspelt_recipe_is_told_the_closest(fledge: Fledge) -> None:
    expect_error(fledge("run", "quikstart"), 2, "no recipe 'quikstart'", "did you mean quickstart?")
    dataset = "corpus.sources=[{kind: hub, name: web, preset: finewb-edu}]"
    expect_error(fledge("corpus", "own-text", dataset), 3, "no preset 'finewb-edu'", "did you mean fineweb-edu?", "fledge corpus --list")


# ---- places


def corpus(fledge: Fledge, path: str, kind: str = "text", *overrides: str, **source: object) -> Outcome:
    wanted = json.dumps([{"kind": kind, "name": "mine", "path": path, **source}])
    return fledge("corpus", "own-text", f"corpus.sources={wanted}", *overrides)


def test_what_lies_in_the_way_is_never_overwritten(fledge: Fledge) -> None:
    mine = Path("runs/own-text/corpus/documents/mine.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    Path("text.txt").write_text("A line of text.\n")
    expect_error(corpus(fledge, "text.txt"), 4, "runs/own-text/corpus/documents")
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("reason", ["a file", "read-only"])
def test_a_place_that_cannot_be_written_is_named(fledge: Fledge, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    Path("text.txt").write_text("A line of text.\n")
    if reason == "a file":
        Path("place").write_text("mine")
        words = ("place", "File exists")
    else:

        def refuse(operation: str, path: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(disk, "fail_point", refuse)
        words = ("cannot write place", "Read-only file system")
    source = "corpus.sources=[{kind: text, name: mine, path: text.txt}]"
    expect_error(fledge("corpus", "own-text", source, "--name", "./place"), 5, *words, "a place you may write to")
    assert not Path("place").is_dir() or not list(Path("place").iterdir())


# ---- sources

GOOD = b'{"text": "A line of text."}\n'


def archive(kind: str) -> bytes:
    """One text file by a name that leads outside."""
    stored = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stored, "w") as packed:
            packed.writestr("../outside.txt", "text " * 99)
    else:
        with tarfile.open(fileobj=stored, mode="w:gz" if kind == "tar.gz" else "w") as packed:
            member = tarfile.TarInfo("../outside.txt")
            member.size = 495
            packed.addfile(member, io.BytesIO(b"text " * 99))
    return stored.getvalue()


def table(**columns: list[object]) -> bytes:
    stored = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), stored)
    return stored.getvalue()


WIDE_WINDOW = struct.pack("<I", 0xFD2FB528) + bytes([0, 21 << 3]) + struct.pack("<I", 4 << 3 | 1)[:3] + b"text"

UNREADABLE: list[tuple[str, str, bytes, tuple[str, ...]]] = [
    ("a.jsonl", "jsonl", b'{"body": "x"}\n' * 2_000, ("1,000 of 1,000 lines", "no key 'text' (keys: body)", "`fields`")),
    ("a.jsonl", "jsonl", GOOD * 9 + b"{\n", ("1 of 10 lines", "a.jsonl:10: not JSON", "maximum_reject_share")),
    ("a.jsonl", "jsonl", GOOD.decode().encode("utf-16"), ("looks like UTF-16", "iconv")),
    ("a.jsonl.gz", "jsonl", gzip.compress(GOOD * 900)[:-9], ("a.jsonl.gz is damaged after line", "restore")),
    ("a.txt.zst", "text", WIDE_WINDOW, ("needs a window of 2,147,483,648 bytes", "compress it again")),
    ("a.zip", "text", archive("zip"), ("a.zip is an archive", "unpack it yourself")),
    ("a.tar", "text", archive("tar"), ("a.tar is an archive", "unpack it yourself")),
    ("a.tar.gz", "jsonl", archive("tar.gz"), ("a.tar.gz is an archive", "unpack it yourself")),
    ("a.parquet", "parquet", table(body=["x"]), ("a.parquet", "text", "body")),
    ("a.parquet", "parquet", table(text=[1, 2]), ("a.parquet", "text", "int64")),
    ("a.parquet", "parquet", table(text=["x"])[:-5], ("a.parquet",)),
    ("a.txt", "text", table(text=["x"]), ("is a Parquet file", "kind: parquet")),
    ("a.txt", "text", b" \n\n", ("gives 0 documents (1 read, 0 rejected)",)),
]


@pytest.mark.parametrize(("name", "kind", "content", "words"), UNREADABLE)
def test_a_source_that_cannot_be_read_is_named(fledge: Fledge, name: str, kind: str, content: bytes, words: tuple[str, ...]) -> None:
    Path(name).write_bytes(content)
    expect_error(corpus(fledge, name, kind), 3, *words)
    assert not Path("../outside.txt").exists()
    assert not list(Path.cwd().glob("runs/own-text/corpus/documents"))


def test_a_source_that_is_not_there_is_named(fledge: Fledge) -> None:
    expect_error(corpus(fledge, "nowhere"), 3, "no file or folder nowhere")
    expect_error(corpus(fledge, "*.rst"), 3, "*.rst has 0 usable files")
    Path("loop.txt").symlink_to("loop.txt")
    expect_error(corpus(fledge, "loop.txt"), 3, "loop.txt")


BAD_LINES: list[tuple[bytes, str]] = [
    (b"{", "not JSON"),
    (b"[1, 2]", "a list, not an object"),
    (b"7", "a number, not an object"),
    (b'{"body": "x"}', "no key 'text' (keys: body)"),
    (b'{"text": null}', "text is null, not a string"),
    (b'{"text": 5}', "text is a number, not a string"),
    (b'{"text": ["x"]}', "text is a list, not a string"),
    (b'{"text": " "}', "text is empty"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "text holds half a surrogate pair"),
    (b'{"text": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", "nested too deep"),
    (b'{"text": "x", "n": ' + b"1" * 5_000 + b"}", "a number that is too long"),
    (b'{"text": "x", "n": NaN}', "NaN is no JSON number"),
]


def test_bad_lines_are_listed_and_the_others_kept(fledge: Fledge) -> None:
    """Each bad line has a good one before and after it; the last line has no end."""
    good = [json.dumps({"text": f"This is line {number}."}).encode() for number in range(300)]
    lines = list(good)
    for number, (line, _) in reversed(list(enumerate(BAD_LINES))):
        lines.insert(10 * number + 5, line)
    Path("a.jsonl").write_bytes(b"\n".join(lines))
    outcome = corpus(fledge, "a.jsonl", "jsonl", "corpus.deduplicate.kind=none")
    assert outcome.exit_code == 0, outcome.noted
    assert "13 rejected (see rejects" in outcome.said
    folder = Path("runs/own-text/corpus/documents")
    assert sum(json.loads((folder / "manifest.json").read_text())["stats"]["rows"].values()) == 300
    rejects = [json.loads(line) for line in next(folder.glob("rejects*")).read_text().splitlines()]
    assert [(reject["line"], reject["reason"]) for reject in rejects] == [
        (11 * number + 6, reason) for number, (_, reason) in enumerate(BAD_LINES)
    ]


def test_what_expands_without_end_is_given_up(fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "EXPANSION_FROM_BYTES", 1_000_000)
    Path("a.txt.gz").write_bytes(gzip.compress(bytes(20_000_000), 1))
    expect_error(corpus(fledge, "a.txt.gz"), 3, "a.txt.gz", "expands more than 100-fold")


def test_a_file_given_twice_counts_once_and_is_told(fledge: Fledge) -> None:
    Path("text.txt").write_text("Words of one text.\n" * 20)
    sources = "corpus.sources=[{kind: text, name: one, path: text.txt}, {kind: text, name: two, path: text.txt}]"
    outcome = fledge("corpus", "own-text", sources)
    assert outcome.exit_code == 0, outcome.noted
    assert "nothing is left of source two: all its documents occur in the sources before it" in outcome.noted
    expect_error(fledge("corpus", "own-text", sources.replace("two", "one")), 2, "two sources are named 'one'")


def test_a_file_name_cannot_forge_a_line(fledge: Fledge) -> None:
    path = Path("folder") / 'a\nerror: "forged".jsonl'
    path.parent.mkdir()
    path.write_bytes(b"{\n")
    outcome = corpus(fledge, "folder", "jsonl")
    expect_error(outcome, 3, "forged", "not JSON")
    assert sum(line.startswith("error: ") for line in outcome.noted.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        ("conversations", {"messages": [{"role": "user", "content": "q"}]}, "not the assistant's"),
        (
            "conversations",
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]},
            "the last message is not the assistant's",
        ),
        ("conversations", {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}, "empty"),
        ("conversations", {"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "a"}]}, "number, not a string"),
        ("conversations", {"messages": [{"role": "wizard", "content": "q"}, {"role": "assistant", "content": "a"}]}, "wizard"),
        ("preferences", {"prompt": "q", "chosen": "same", "rejected": "same"}, "chosen and rejected are equal"),
        ("preferences", {"chosen": "a", "rejected": "b"}, "no key 'prompt'"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": ""}, "rejected is empty"),
    ],
)
def test_unusable_conversations_and_pairs_are_told(fledge: Fledge, content: str, row: dict[str, object], reason: str) -> None:
    Path("a.jsonl").write_text(json.dumps(row) + "\n")
    expect_error(corpus(fledge, "a.jsonl", "jsonl", content=content), 3, "1 of 1 lines cannot be used", "a.jsonl:1: ", reason)


# ---- tokenizers, token sets, checkpoints

TINY = """
corpus: {validation_fraction: 0.2, sources: [{kind: text, name: text, path: text.txt, maximum_document_characters: 200}]}
tokenizer: {vocabulary_size: 300}
pack: {sequence_length: 128}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48, max_position_embeddings: 128}
pretrain: {steps: 2, batch_rows: 4, sequence_length: 32, precision: fp32, threads: 1, metrics: {tensorboard: false}}
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe and its run up to the token set."""
    folder = tmp_path_factory.mktemp("packed")
    draw = random.Random(0)
    words = ["bird", "river", "stone", "cloud", "letter", "window", "garden", "song", "winter", "road"]
    sentences = (f"The {draw.choice(words)} by the {draw.choice(words)} is like a {draw.choice(words)}." for _ in range(240))
    (folder / "text.txt").write_text("\n\n".join(sentences))
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            cli._application()(["run", "tiny.yaml", "--to", "pack"], prog_name="fledge")
    assert not ended.value.code
    yield folder


@pytest.fixture
def tiny(packed: Path, fledge: Fledge) -> Path:
    """A copy of it in the test's own folder; returns its token set."""
    shutil.copytree(packed, Path.cwd(), dirs_exist_ok=True)
    return Path("runs/tiny/pack/documents")


def changed(place: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda old: old[:place] + content + old[place + len(content) :]


TOKENS = "train-text.tokens"

DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes] | None, int, tuple[str, ...]]] = {
    "a byte short": (TOKENS, lambda old: old[:-1], 4, (TOKENS, "bytes long, the manifest says", "--force")),
    "a byte long": (TOKENS, lambda old: old + b"x", 4, (TOKENS, "bytes long, the manifest says", "--force")),
    "magic": (TOKENS, changed(0, b"PK"), 3, (TOKENS, "magic", "fledge pack")),
    "version": (TOKENS, changed(8, b"\x09"), 3, (TOKENS, "format version is 9, tokens.json expects 2")),
    "element type": (TOKENS, changed(12, b"\x02"), 3, (TOKENS, "element type is 2, tokens.json expects 1")),
    "byte order": (TOKENS, changed(8, b"\x00\x00\x00\x02"), 3, (TOKENS, "format version")),
    "tokenizer": (TOKENS, changed(24, b"\x00\x00"), 3, (TOKENS, "tokenizer is 0000", "tokens.json expects")),
    "a flipped bit": (TOKENS, lambda old: old[:-1] + bytes([old[-1] ^ 1]), 3, ("step 1 cannot be read and was not applied", "block 0")),
    "an index": ("train-text.documents", changed(999, b"\xff"), 3, ("train-text.documents is damaged", "CRC-32")),
    "a shard gone": (TOKENS, None, 4, (TOKENS, "is missing", "--force")),
    "a shard more": ("train-web.tokens", lambda old: b"x", 3, ("train-web.tokens is a shard that tokens.json does not name",)),
    "a path outside": (
        "manifest.json",
        lambda old: old.replace(b'"train-text.tokens"', b'"../../passwd"'),
        4,
        ("manifest.json", "damaged or was edited"),
    ),
    "no description": ("tokens.json", lambda old: old[:-9], 4, ("tokens.json", "bytes long, the manifest says")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_token_set_ends_training_before_it_begins(fledge: Fledge, tiny: Path, name: str) -> None:
    file, damage, exit_code, words = DAMAGES[name]
    if damage is None:
        (tiny / file).unlink()
    else:
        (tiny / file).write_bytes(damage((tiny / file).read_bytes() if (tiny / file).exists() else b""))
    expect_error(fledge("pretrain", "tiny.yaml"), exit_code, *words)
    assert not list(Path("runs/tiny").glob("pretrain/checkpoints/*"))


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        ((), "start", ("start holds no checkpoint", "fledge run")),
        (("checkpoints/step-000004.partial/config.json",), "start", ("start holds no finished checkpoint",)),
        (("weights.pt",), "start/weights.pt", ("start/weights.pt is a file", "model.safetensors", "pickled weights")),
        ((), "start/weights.pt", ("no run or checkpoint", "start/weights.pt")),
    ],
    ids=["empty", "partial", "a file", "nothing"],
)
@pytest.mark.usefixtures("tiny")
def test_a_start_that_is_no_checkpoint_is_named(fledge: Fledge, names: tuple[str, ...], given: str, words: tuple[str, ...]) -> None:
    Path("start").mkdir()
    for name in names:
        (Path("start") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("start") / name).write_bytes(b"")
    expect_error(fledge("pretrain", "tiny.yaml", f"pretrain.start_from=./{given}"), 4, *words)


@pytest.mark.usefixtures("tiny")
def test_a_gpu_that_is_not_there_is_told(fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expect_error(fledge("pretrain", "tiny.yaml", "pretrain.device=cuda"), 5, "device is cuda", "no GPU", "set device to auto or cpu")


def test_a_tokenizer_that_cannot_be_used_is_named(fledge: Fledge) -> None:
    Path("theirs").mkdir()
    wanted = ("tokenizer", "own-text", "tokenizer={kind: import, path: ./theirs}")
    Path("theirs/tokenizer.json").write_text('{"model": {"vo')
    expect_error(fledge(*wanted), 3, "theirs/tokenizer.json is not valid JSON", "import another")
    Path("theirs/tokenizer.json").rename("theirs/tokenizer.pkl")
    expect_error(fledge(*wanted), 3, "tokenizer.pkl is not opened: a pickle can run code")


def safetensors(header: bytes, content: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + content


def entry(begin: int, end: int, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = ModelSettings(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    save_model(Llama(ModelConfig(shape, 128), 0), folder)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", size=1 << 63),
        safetensors(b"{}", size=101_000_000),
        safetensors(b'{"\xff": 1}'),
        safetensors(f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}'.encode(), bytes(12)),
        safetensors(f'{{"a": {entry(0, 8)}, "b": {entry(16, 24)}}}'.encode(), bytes(24)),
        safetensors(f'{{"a": {entry(0, 8, f"[{1 << 62}, {1 << 62}]")}}}'.encode(), bytes(8)),
        safetensors(f'{{"a": {entry(0, 8, dtype="F99")}}}'.encode(), bytes(8)),
        safetensors(f'{{"a": {entry(0, 8, dtype="I32")}}}'.encode(), bytes(8)),
    ],
    ids=["huge header", "101 MB header", "not UTF-8", "overlap", "hole", "overflow", "unknown type", "no weights"],
)
def test_weights_that_cannot_be_are_refused(fledge: Fledge, model_folder: Path, content: bytes) -> None:
    shutil.copytree(model_folder, "model")
    Path("model/model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="model") as caught:
        load_model(Path("model"))
    assert caught.value.exit_code == 4 and caught.value.remedy


def test_weights_that_are_not_finite_are_named(fledge: Fledge, model_folder: Path) -> None:
    model = load_model(model_folder)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    save_model(model, Path("model"))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight in model holds values that are not finite"):
        load_model(Path("model"))
