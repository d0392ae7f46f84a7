"""Every kind of bad input, from configuration and corpus to training and export, with the tests that hold it.

APART are those that cannot happen here, with the reason. What no test of a part holds as the user meets it is in test_refusals.py
and test_refusals_of_results.py.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

HERE, RESULTS = "tests/test_refusals.py", "tests/test_refusals_of_results.py"

RECIPES = f"{HERE}::test_a_file_that_is_no_recipe_is_refused"
VALUES = f"{HERE}::test_a_value_that_cannot_be_is_named"
PLACES = f"{HERE}::test_a_place_that_cannot_be_written_is_named"
SOURCES = f"{HERE}::test_a_source_that_cannot_be_read_is_named"
LINES = f"{HERE}::test_bad_lines_are_listed_and_the_others_kept"
SHARDS = f"{RESULTS}::test_a_damaged_token_set_ends_training_before_it_begins"
STARTS = f"{RESULTS}::test_a_start_that_is_no_checkpoint_is_named"
WEIGHTS = f"{RESULTS}::test_weights_that_cannot_be_are_refused"

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
            f"{RESULTS}::test_a_tokenizer_that_cannot_be_used_is_named",
            "tests/tokens/test_tokenizer.py::test_a_broken_tokenizer_is_refused_naming_the_field",
            "tests/tokens/test_importing.py::test_an_unsafe_or_lossy_file_is_refused_naming_the_field",
        ),
    ),
    53: ("missing single-byte tokens", ("tests/tokens/test_tokenizer.py::test_a_broken_tokenizer_is_refused_naming_the_field",)),
    54: ("a pickled tokenizer", (f"{RESULTS}::test_a_tokenizer_that_cannot_be_used_is_named",)),
    57: (
        "control tokens spelt in a text",
        (
            "tests/tokens/test_tokenizer.py::test_no_text_becomes_a_special_id",
            "tests/tokens/test_chat.py::test_no_message_can_forge_a_turn",
        ),
    ),
    58: ("a megabyte of one letter", ("tests/tokens/test_engines.py::test_a_megabyte_of_one_thing_takes_linear_time",)),
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
        (
            f"{RESULTS}::test_weights_that_are_not_finite_are_named",
            "tests/training/test_checkpoint.py::test_what_is_not_finite_is_not_saved",
        ),
    ),
    80: (
        "a full disk",
        (
            "tests/training/test_checkpoint.py::test_a_full_disk_is_said_before_the_first_step",
            "tests/training/test_saving.py::test_an_error_at_any_operation_of_a_save_costs_this_save_only",
            "tests/training/test_saving.py::test_the_last_state_must_be_saved",
        ),
    ),
    81: (
        "memory that runs out",
        (
            "tests/training/test_preparation.py::test_the_micro_batch_is_halved_until_it_fits",
            "tests/training/test_preparation.py::test_one_row_that_does_not_fit_is_an_error",
        ),
    ),
    82: ("no GPU though asked for", (f"{RESULTS}::test_a_gpu_that_is_not_there_is_told",)),
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
    87: (
        "an adapter that the model cannot have",
        (f"{HERE}::test_adapters_that_cannot_be_are_refused", "tests/model/test_adapters.py::test_a_rank_above_a_matrix_is_refused"),
    ),
    88: (
        "an adapter of another base",
        (
            "tests/model/test_adapters.py::test_the_base_is_known_by_its_hash_and_moves_along",
            "tests/model/test_adapters.py::test_what_is_no_adapter_of_ours_is_refused",
        ),
    ),
    89: (
        "a clock set back: records are ordered and cut by step, not by time",
        (
            "tests/core/test_metrics.py::test_a_run_killed_many_times_reads_as_one",
            "tests/core/test_metrics.py::test_resuming_cuts_what_was_not_saved",
        ),
    ),
    92: (
        "an export onto a folder that is not empty",
        ("tests/verbs/test_publishing.py::test_wrong_uses_are_explained_and_leave_nothing",),
    ),
    93: (
        "an export of a tied head, a padded vocabulary, a cast",
        (
            "tests/publish/test_huggingface.py::test_transformers_opens_every_architecture_with_the_same_logits",
            "tests/publish/test_huggingface.py::test_a_cast_is_that_of_the_type",
            "tests/publish/test_gguf_export.py::test_what_is_read_back_is_the_model",
        ),
    ),
    94: (
        "an exported file that is not what was in memory",
        (
            "tests/publish/test_huggingface.py::test_a_folder_that_differs_does_not_appear",
            "tests/publish/test_gguf_export.py::test_a_file_that_differs_does_not_appear",
        ),
    ),
    95: (
        "a token of the hub that is missing or refused",
        ("tests/publish/test_importing.py::test_the_hub_is_asked_for_data_only_and_what_it_says_is_told_without_a_token",),
    ),
    96: (
        "a model's name with ../, spaces or emoji",
        ("tests/publish/test_importing.py::test_what_is_no_folder_and_no_name_on_the_hub_is_refused",),
    ),
}
"""What is wrong, and the tests that hold the answer, by the row of the list of bad inputs."""

APART: dict[int, str] = {
    12: "a recipe has no vocabulary of the model: it is the tokenizer's, and model.vocab_size is an unknown key",
    17: "no setting is read from the environment; a dotted override of a key that is not there is row 1",
    55: "no chat template is ever run: Fledge writes templates for other programs and renders its own formats without Jinja",
    56: "as row 55",
}


def test_every_row_is_held_or_set_apart() -> None:
    assert sorted([*ROWS, *APART]) == [*range(1, 90), *range(92, 97)]


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
