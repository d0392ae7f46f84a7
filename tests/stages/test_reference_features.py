"""What the recipes of known systems are made of, each shown on a few hundred kilobytes of Python's help topics."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import sentencepiece

from fledge.core import artifact
from fledge.core.metrics import read_metrics
from fledge.evaluation.benchmarks.definitions import BENCHMARKS
from fledge.evaluation.benchmarks.places import find_benchmark
from fledge.evaluation.benchmarks.run import read_questions
from fledge.evaluation.text_files import find_text_files
from fledge.stages import run_stage
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.making import training
from fledge.stages.run import Run, set_aside
from fledge.stages.stand_ins import with_stand_ins
from fledge.tokens.sentencepiece_models import train_llama_model
from fledge.tokens.shards import TokenShard, open_token_set
from fledge.tokens.tokenizer import open_tokenizer
from fledge.training.batches import Batch, BatchLoader
from fledge.training.plan import Row
from tests.command_line import Fledge

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 768, 1_536, 2_048)
ROWS = (32, 16, 16, 8, 8, 4, 4, 3, 2, 2)
STEPS_PER_PHASE = 2
TEXTS = [topics[name] for name in sorted(topics)]

MakeRun = Callable[..., Run]
Walk = Callable[..., None]
Seen = dict[int, tuple[list[Row], list[Batch]]]


@pytest.fixture
def make_topics(make_run: MakeRun, tmp_path: Path) -> MakeRun:
    """A run over help topics, cut into sources of these names; nothing is learned but documents."""

    def make(*overrides: str, sources: tuple[str, ...] = ("topics",), name: str = "run") -> Run:
        placed = []
        for number, source in enumerate(sources):
            path = tmp_path / f"{source}.txt"
            path.write_text("\n\n".join(TEXTS[number : 40 : len(sources)]), encoding="utf-8")
            placed.append(f"{{kind: text, name: {source}, path: '{path}', maximum_document_characters: 400}}")
        return make_run(f"corpus.sources=[{', '.join(placed)}]", "sft=null", "dpo=null", "evaluate=null", *overrides, name=name)

    return make


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What training reads: by step the rows that the plan names and the batches that they become."""
    found: Seen = {}
    read = BatchLoader._read

    def noted(self: BatchLoader, step: int) -> list[Batch]:
        batches = read(self, step)
        found[step] = self.plan.rows(step), batches
        return batches

    monkeypatch.setattr(BatchLoader, "_read", noted)
    return found


def shards_of(run: Run, split: str, content: str = "documents") -> tuple[TokenShard, ...]:
    return open_token_set(run.folder / "pack" / content).shards(split)  # type: ignore[arg-type]


def test_the_ten_stage_curriculum(make_topics: MakeRun, walk: Walk, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    """From rows of 8 tokens to rows of 2,048, each with a batch of its own; the log says where it is, and the rows are the text's."""
    batch_tokens = [length * rows for length, rows in zip(LENGTHS, ROWS, strict=True)]
    ends = accumulate(STEPS_PER_PHASE * tokens for tokens in batch_tokens)
    phases = [
        f"{{until_tokens: {end}, sequence_length: {length}, batch_tokens: {tokens}}}"
        for end, length, tokens in zip(ends, LENGTHS, batch_tokens, strict=True)
    ]
    run = make_topics(
        "pretrain.steps=null",
        "pretrain.sequence_length=2048",
        "model.max_position_embeddings=2048",
        f"pretrain.phases=[{', '.join(phases)}]",
    )
    walk(run, "pretrain")
    said = capsys.readouterr()
    records = [record for record in read_metrics(run.folder / "pretrain") if "train/phase" in record]
    assert {record["train/phase"]: record["train/row_tokens"] for record in records} == dict(enumerate(LENGTHS, start=1))
    [shard] = shards_of(run, "train")
    stream = np.asarray(shard.tokens[:]).astype(np.int64)
    for number, (length, rows) in enumerate(zip(LENGTHS, ROWS, strict=True)):
        assert f"phase {number + 1} of 10: {STEPS_PER_PHASE} steps of {rows} rows x {length:,} tokens" in said.out
        assert f"phase {number + 1} of 10: {rows} rows x {length:,} tokens" in said.err
        for step in range(STEPS_PER_PHASE * number, STEPS_PER_PHASE * (number + 1)):
            planned, [batch] = seen[step]
            assert batch.tokens.shape == (rows, length)
            for row, tokens in zip(planned, batch.tokens.numpy(), strict=True):
                expected = stream[row.index * length : (row.index + 1) * length]
                assert np.array_equal(tokens[: len(expected)], expected)
    assert records[-1]["train/loss"] < records[0]["train/loss"]


def test_phases_a_and_b_reach_their_shares(make_topics: MakeRun, walk: Walk, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sources in the first half, the two others in the second; how often each was read is said at every validation."""
    sources = ("c4", "gutenberg", "fineweb-edu", "wikipedia")
    mixtures = ({"c4": 0.67, "gutenberg": 0.33}, {"fineweb-edu": 0.5, "wikipedia": 0.5})
    steps, step_tokens = 30, 16 * 32
    phases = [
        f"{{until_tokens: {steps * step_tokens * number}, mixture: {json.dumps({**dict.fromkeys(sources, 0), **mixture})}}}"
        for number, mixture in enumerate(mixtures, start=1)
    ]
    run = make_topics(
        "pretrain.steps=null",
        "pretrain.batch_rows=16",
        f"pretrain.phases=[{', '.join(phases)}]",
        f"pretrain.validate_every_steps={steps}",
        "pretrain.validation_rows=4",
        sources=sources,
    )
    walk(run, "pretrain")
    said = capsys.readouterr()
    places = [shard.source for shard in shards_of(run, "train")]
    for number, mixture in enumerate(mixtures):
        read = Counter(places[row.source] for step in range(number * steps, (number + 1) * steps) for row in seen[step][0])
        shares = {name: count / (16 * steps) for name, count in read.items()}
        assert shares == pytest.approx(mixture, abs=0.005)
    tokens = {shard.source: len(shard.tokens) for shard in shards_of(run, "train")}
    both = {**mixtures[0], **mixtures[1]}
    half, end = [line for line in said.err.splitlines() if "validation" in line and "epochs" in line]
    for name, share in both.items():
        epochs = share * steps * step_tokens / tokens[name]
        for line, expected in ((half, epochs if name in mixtures[0] else 0), (end, epochs)):
            [shown] = re.findall(rf"{name} ([\d.]+)", line)
            assert float(shown) == pytest.approx(expected, abs=0.02)
        planned = re.search(rf"{name}: ([\d.]+)% of the tokens \([\d,]+\), ([\d.]+) epochs", said.out)
        assert planned is not None
        assert [float(figure) for figure in planned.groups()] == pytest.approx([50 * share, epochs], abs=0.3)


def test_fp8_or_bf16_computes_in_what_there_is_and_says_why(make_topics: MakeRun, walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_topics("pretrain.precision=fp8_or_bf16", "pretrain.device=cpu", "pretrain.steps=2", "pretrain.validation_rows=4")
    walk(run, "pretrain")
    taken = json.loads((run.folder / "pretrain" / "machine.json").read_text())["chosen"]["precision"]
    assert taken in ("bf16", "fp32")
    assert f"pretrain: precision is fp8_or_bf16, and computes in {taken}: a cpu has no units for fp8" in capsys.readouterr().out
    run = make_topics("pretrain.precision=fp32", "pretrain.device=cpu", "pretrain.steps=2", name="asked")
    walk(run, "pretrain")
    assert "fp8" not in capsys.readouterr().out


def test_a_precision_that_is_kept_is_told_where_nothing_is_lacking(
    make_topics: MakeRun, walk: Walk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after torchao came to a machine on which the run began without it."""
    monkeypatch.setattr(training, "float8_lacks", lambda device, capability, has_float8: None)
    run = make_topics("pretrain.precision=fp8_or_bf16", "pretrain.device=cpu", "pretrain.steps=2", "pretrain.validation_rows=4")
    walk(run, "pretrain")
    assert re.search(r"precision is fp8_or_bf16, and computes in (bf16|fp32): kept from machine\.json", capsys.readouterr().out)


def test_tokens_on_the_device_are_the_same_rows(make_topics: MakeRun, walk: Walk, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    """A CPU has them in memory either way: `auto` reads the shards, `on` takes them in once, and the weights are the same to the bit."""
    weights, read = dict[str, bytes](), dict[str, list[Any]]()
    for place in ("off", "auto", "on"):
        run = make_topics(f"pretrain.tokens_on_device={place}", "pretrain.device=cpu", name=place)
        walk(run, "pretrain")
        weights[place] = (find_checkpoint(f"{run.folder}@final") / "model.safetensors").read_bytes()
        read[place] = [batch.tokens.tolist() for step in sorted(seen) for batch in seen[step][1]]
        assert ("tokens on the device" in capsys.readouterr().out) == (place == "on")
    assert read["off"] == read["auto"] == read["on"]
    assert weights["off"] == weights["auto"] == weights["on"]


def test_ninety_to_ten_with_seed_42(make_topics: MakeRun, walk: Walk) -> None:
    held_out, trained = dict[str, set[str]](), dict[str, set[str]]()
    for name, seed in (("first", 42), ("again", 42), ("other", 43)):
        run = make_topics("pack.split={kind: fraction, validation_fraction: 0.1}", f"pack.seed={seed}", "pretrain=null", name=name)
        walk(run, "pack")
        held_out[name], trained[name] = (
            {name for shard in shards_of(run, split) for name in shard.document_ids.to_pylist()} for split in ("validation", "train")
        )
    documents = len(held_out["first"]) + len(trained["first"])
    assert documents > 500 and not held_out["first"] & trained["first"]
    assert len(held_out["first"]) / documents == pytest.approx(0.1, abs=0.03)
    assert held_out["first"] == held_out["again"] != held_out["other"]


def test_the_lima_format(make_run: MakeRun, walk: Walk, tmp_path: Path) -> None:
    """`<s>User: {question}\\nAssistant: {answer}</s>` in SentencePiece's ids; the answer and its end are learned; at most 2,048 tokens."""
    (tmp_path / "tokenizer.model").write_bytes(train_llama_model(600, TEXTS[:40]))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))

    def written(question: str, answer: str) -> list[int]:
        return [theirs.bos_id(), *theirs.encode(f"User: {question}\nAssistant: {answer}"), theirs.eos_id()]

    longest = next(count for count in range(2_048, 0, -1) if len(written("How long?", "on and on " * count + "end")) <= 2_048)
    asked = [
        ("What is a class?", "A recipe for objects.\nWith  spaces."),
        ("Why «ü»?", "Because: naïve."),
        ("How long?", "on and on " * longest + "end"),
    ]
    over = ("How long?", "on and on " * (longest + 1) + "end")
    talks = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in [*asked, over]]
    (tmp_path / "lima.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    source = f"{{kind: jsonl, name: lima, content: conversations, path: '{tmp_path / 'lima.jsonl'}'}}"
    run = make_run(
        f"corpus={{validation_fraction: 0, sources: [{source}]}}",
        f"tokenizer={{kind: import, template: plain, path: '{tmp_path / 'tokenizer.model'}'}}",
        "pack.sequence_length=2048",
        "pretrain=null",
        "dpo=null",
        "evaluate=null",
        "sft.start_from=base",
        "model.max_position_embeddings=2048",
    )
    walk(run, "pack")
    tokenizer = open_tokenizer(run.folder / "tokenizer")
    assert [tokenizer.specials[name] for name in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    figures = artifact.open_artifact(run.folder / "pack" / "conversations").stats["train"]
    assert figures["dropped_too_long"] == 1
    [shard] = shards_of(run, "train", "conversations")
    assert shard.supervised is not None
    ids, learned = np.asarray(shard.tokens[:]), np.asarray(shard.supervised[:])
    found = []
    for start, length in zip(shard.starts, shard.lengths, strict=True):
        row, mask = ids[start : start + length].tolist(), learned[start : start + length].astype(bool)
        answer = [token for token, flag in zip(row, mask, strict=True) if flag]
        assert mask.tolist() == sorted(mask.tolist()) and answer[-1] == theirs.eos_id()
        found.append((row, theirs.decode(answer[:-1]).strip()))
    assert sorted(found) == sorted((written(question, answer), answer) for question, answer in asked)


def test_two_checkpoints_of_a_run_are_compared_at_the_prompt(
    make_topics: MakeRun, walk: Walk, fledge: Fledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question is answered by an early checkpoint and by the last one, each under its name, and they say different things."""
    run = make_topics("pretrain.steps=16", "pretrain.learning_rate=1e-2", "pretrain.save_every_steps=4", "pretrain.keep_checkpoints=20")
    walk(run, "pretrain")
    monkeypatch.setattr("sys.stdin", io.StringIO("The class statement\n"))
    names = [f"{run.folder}/pretrain@{step}" for step in (4, 16)]
    outcome = fledge("chat", "--compare", *names, "--temperature", "0")
    assert outcome.exit_code == 0, outcome.noted
    answers = {name: re.findall(rf"@{name}> (.*)", outcome.said) for name in (4, 16)}
    assert all(len(found) == 1 for found in answers.values()), outcome.said
    assert answers[4] != answers[16]


def test_stand_ins_have_the_layout_of_what_they_stand_for(make_run: MakeRun, tmp_path: Path) -> None:
    """Special ids, headerless uint16 with their description, rows for every benchmark; made once and the same in another run."""
    run = make_run(
        "tokenizer={kind: import, path: 'stand-in:sentencepiece/tokenizer.model', vocabulary_size: 1024}",
        "pack.import_bin='stand-in:tokens'",
        "evaluate.benchmarks={boolq: 'stand-in:benchmarks'}",
        "evaluate.files=['stand-in:benchmarks/text.txt']",
    )
    placed = with_stand_ins(run, "tokenizer").recipe.tokenizer
    assert placed is not None and placed.path is not None
    model = sentencepiece.SentencePieceProcessor(model_file=placed.path)
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.get_piece_size()) == (0, 1, 2, 1_024)
    before = Path(placed.path).stat().st_mtime_ns
    assert with_stand_ins(run, "tokenizer").recipe.tokenizer == placed and Path(placed.path).stat().st_mtime_ns == before
    evaluated = with_stand_ins(run, "evaluate").recipe.evaluate
    rows = run.folder / "stand_ins" / "benchmarks"
    assert evaluated is not None and evaluated.benchmarks == {"boolq": str(rows)}
    assert [file.name for file in find_text_files(evaluated.files)] == ["text.txt"]
    for name in BENCHMARKS:
        questions = read_questions(find_benchmark(name, rows), "all", 0)
        assert len(questions.items) >= (1 if name == "text" else 6)
    assert with_stand_ins(make_run(), "tokenizer").recipe.tokenizer == make_run().recipe.tokenizer


def test_what_decides_a_stand_in_makes_another_of_it(make_run: MakeRun) -> None:
    """The size of a tokenizer, and the tokenizer of the run for tokens, which `import_bin` compares by its hash."""

    def placed(size: int) -> tuple[int, Path]:
        run = make_run(
            f"tokenizer={{kind: import, path: 'stand-in:byte_bpe/tokenizer.json', vocabulary_size: {size}}}",
            "pack.import_bin='stand-in:tokens'",
        )
        recipe = with_stand_ins(run, "tokenizer").recipe
        assert recipe.tokenizer is not None and recipe.tokenizer.path is not None
        set_aside(run, ["tokenizer", "pack"])
        run_stage("tokenizer", run)
        tokens = with_stand_ins(run, "pack").recipe.pack
        assert tokens is not None and tokens.import_bin is not None
        run_stage("pack", run)
        return len(json.loads(Path(recipe.tokenizer.path).read_text())["model"]["vocab"]), Path(tokens.import_bin)

    (small, small_tokens), (large, large_tokens) = placed(600), placed(700)
    assert large - small == 100
    assert small_tokens != large_tokens and small_tokens.is_dir() and large_tokens.is_dir()


@pytest.mark.parametrize(
    ("stage", "overrides", "is_made"),
    [
        ("corpus", (), True),
        ("corpus", ("corpus.decontaminate.evaluated=false",), False),
        ("sft", (), False),
        ("sft", ("sft.benchmarks=[boolq]",), True),
        ("report", (), False),
    ],
)
def test_only_a_stage_that_reads_rows_of_benchmarks_has_them_made(
    stage: str, overrides: tuple[str, ...], is_made: bool, make_run: MakeRun
) -> None:
    run = make_run("evaluate.benchmarks={boolq: 'stand-in:benchmarks'}", *overrides)
    with_stand_ins(run, stage)
    assert (run.folder / "stand_ins" / "benchmarks").is_dir() is is_made
