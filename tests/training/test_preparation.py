from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_assembly import MODEL, assembled, training_settings, write_token_set

from fledge.core.errors import ArtifactError, MachineError
from fledge.model.float8 import has_float8
from fledge.model.llama import Llama
from fledge.training import parallel, preparation
from fledge.training.batches import Batch, open_rows
from fledge.training.compiling import wants_compiling
from fledge.training.objectives import NextToken
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import MACHINE, Machine, World, keep_trial, machine_changes, settle_machine
from fledge.training.phases import make_plan
from fledge.training.preparation import compile_in_place, faster_precision, may_choose_float8, on_device, prepare, try_out
from fledge.training.resident import ResidentRows
from fledge.training.settings import NextTokenSettings, PreferenceSettings

needs_torchao = pytest.mark.skipif(not has_float8(), reason="needs torchao")

WORLD = World(0, 1, torch.device("cpu"))
PLAIN = Machine("fp32", False, 1)


def trial(monkeypatch: pytest.MonkeyPatch, fits: int, compiled: bool = False, compiler_works: bool = True) -> tuple[bool, int, list[int]]:
    """What comes out where `fits` rows fit; also the rows that were tried."""
    tried: list[int] = []

    def one_pass(model: Llama, objective: NextToken, machine: Machine, world: World, rows: Batch) -> None:
        tried.append(rows)  # type: ignore[arg-type]
        if model._compiled_call_impl is not None and not compiler_works:
            raise RuntimeError("g++ cannot be found\nand so on")
        if rows > fits:  # type: ignore[operator]
            raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(preparation, "_one_pass", one_pass)
    model = Llama(MODEL, 0)
    if compiled:
        model.compile(backend="eager")
    machine = Machine("fp32", False, 1, compiled=compiled)
    stays, rows = try_out(model, NextToken(), machine, WORLD, 24, lambda count: count)  # type: ignore[arg-type, return-value]
    assert (model._compiled_call_impl is not None) is stays
    return stays, rows, tried


@pytest.mark.parametrize(("fits", "rows", "tried"), [(24, 24, [24]), (23, 12, [24, 12]), (1, 1, [24, 12, 6, 3, 2, 1])])
def test_the_micro_batch_is_halved_until_it_fits(fits: int, rows: int, tried: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial(monkeypatch, fits) == (False, rows, tried)


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineError, match="one row does not fit the memory of cpu") as error:
        trial(monkeypatch, fits=0)
    assert "activation_checkpointing" in error.value.remedy


def test_a_compiler_that_fails_ends_compiling_and_not_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert trial(monkeypatch, fits=12, compiled=True, compiler_works=False) == (False, 12, [24, 24, 12])
    warning = capsys.readouterr().err
    assert "compiling failed (RuntimeError), training goes on without: g++ cannot be found" in warning
    assert trial(monkeypatch, fits=12, compiled=True) == (True, 12, [24, 12])


def test_another_error_is_not_taken_for_a_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("our own bug")

    monkeypatch.setattr(preparation, "_one_pass", broken)
    with pytest.raises(ValueError, match="our own bug"):
        try_out(Llama(MODEL, 0), NextToken(), PLAIN, WORLD, 4, lambda count: count)  # type: ignore[arg-type, return-value]


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    reader = open_rows([write_token_set(tmp_path, "documents", {"books": 9})], "train", 24)
    model = Llama(MODEL, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert try_out(model, NextToken(), PLAIN, WORLD, 2, lambda count: reader.batch(reader.all_rows()[:count], count)) == (False, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "device", "flops", "has_compiler", "compiles"),
    [
        ("auto", "cuda", 0, False, True),
        ("auto", "cpu", 1e18, True, True),
        ("auto", "cpu", 1e12, True, False),
        ("auto", "cpu", 1e18, False, False),
        ("auto", "mps", 1e18, True, False),
        ("on", "cpu", 0, False, True),
        ("off", "cuda", 1e18, True, False),
    ],
)
def test_compiling_is_for_long_runs_and_gpus(
    asked: str, device: str, flops: float, has_compiler: bool, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++" if has_compiler else None)
    assert wants_compiling(asked, torch.device(device), flops, 2) is compiles  # type: ignore[arg-type]


def test_preferences_are_computed_as_their_reference_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "wants_compiling", lambda asked, *_: asked != "off")
    by_kind = {kind: training_settings(objective=kind, compile="auto") for kind in (NextTokenSettings(), PreferenceSettings())}
    compiled = [settle_machine(tmp_path / kind.kind, settings, WORLD).compiled for kind, settings in by_kind.items()]
    assert compiled == [True, False]
    asked_for = training_settings(objective=PreferenceSettings(), compile="on")
    assert settle_machine(tmp_path / "asked", asked_for, WORLD).compiled


def test_what_was_tried_is_kept_for_the_next_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = training_settings(compile="auto")
    machine = settle_machine(tmp_path, settings, WORLD)
    tried = keep_trial(tmp_path, machine, replace(machine, compiled=True, micro_batch_rows=3), False)
    assert (tried.compiled, tried.micro_batch_rows) == (True, 3)
    capsys.readouterr()
    assert settle_machine(tmp_path, settings, WORLD) == tried
    assert "no longer bitwise" not in capsys.readouterr().err
    assert settle_machine(tmp_path, replace(settings, compile="off"), WORLD).compiled is False


@pytest.mark.parametrize("failing", ["compiler", "memory"])
def test_what_fails_only_after_a_checkpoint_is_refused_until_it_is_allowed(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first start compiles with all rows at once; the next one cannot."""
    tokens = write_token_set(tmp_path / "tokens", "documents", {"books": 9})
    settings, folder = training_settings(steps=2, compile="on"), tmp_path / "run"
    with assembled(folder, settings, [tokens], watched=False) as trainer:
        trainer.run()
    fails, told = {
        "compiler": (RuntimeError("g++ cannot be found"), "compiled: True -> False"),
        "memory": (torch.OutOfMemoryError("too much"), "micro_batch_rows: None -> 4"),
    }[failing]

    def one_pass(model: Llama, objective: NextToken, machine: Machine, world: World, batch: Batch) -> None:
        if model._compiled_call_impl is not None and (failing == "compiler" or len(batch.tokens) > 4):
            raise fails

    monkeypatch.setattr(preparation, "_one_pass", one_pass)

    def continues(allowed: bool = False) -> Machine:
        again = replace(settings, inexact_resume=allowed)
        reader = open_rows([tokens], "train", 16)
        machine = settle_machine(folder, again, WORLD)
        return prepare(folder, Llama(MODEL, 0), NextToken(), machine, WORLD, again, reader, make_plan(reader.sources, again, 1))

    before = (folder / MACHINE).read_bytes()
    for _ in range(2):
        with pytest.raises(ArtifactError, match=rf"{told}[^\n]*\n[^\n]*run\.inexact_resume=true"):
            continues()
        assert (folder / MACHINE).read_bytes() == before
    capsys.readouterr()
    found = continues(allowed=True)
    assert "no longer bitwise" in (warning := capsys.readouterr().err) and told in warning
    assert machine_changes(folder) == [told]
    assert continues() == found, "it is asked for once"
    assert machine_changes(folder) == [told]


def test_a_compiler_that_fails_for_another_process_counts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "least", lambda self, number: min(number, 0 if number == 1 else 9))
    stays, _, _ = trial(monkeypatch, fits=24, compiled=True)
    assert not stays


def test_a_precision_that_the_device_lacks_is_chosen_anew(tmp_path: Path) -> None:
    """A stage that began on a GPU and goes on without."""
    settings = training_settings(precision="auto")
    settle_machine(tmp_path, settings, WORLD)
    record = json.loads((tmp_path / MACHINE).read_text())
    (tmp_path / MACHINE).write_text(json.dumps({**record, "chosen": {**record["chosen"], "precision": "fp8"}}))
    assert settle_machine(tmp_path, settings, WORLD).precision in {"fp32", "bf16"}


def race(folder: Path, seconds: list[float | Exception], passes: float = 1e6) -> tuple[Machine, Llama]:
    """Which machine bf16 and then fp8 come out as, whose passes take so long; and the model."""
    machine = replace(settle_machine(folder, training_settings(), WORLD), precision="bf16", compiled=True)
    reader = open_rows([write_token_set(folder / "tokens", "documents", {"books": 9})], "train", 24)
    plan = make_plan(reader.sources, training_settings(sequence_length=24), 1)
    answers = iter(seconds)

    def pass_seconds() -> float:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    model = Llama(MODEL, 0)
    return faster_precision(folder, model, machine, WORLD, plan, passes, pass_seconds), model


def float8_maps(model: Llama) -> int:
    return sum(type(module).__name__ == "Float8Linear" for module in model.modules())


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_the_faster_of_bf16_and_fp8_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faster, model = race(tmp_path, [0.2, 0.1])
    assert (faster.precision, float8_maps(model)) == ("fp8", 14)
    assert "0.2000 s in bf16 and 0.1000 s in fp8, the faster is taken" in capsys.readouterr().out
    measured = json.loads((tmp_path / MACHINE).read_text())["measured"]
    assert measured == {"bf16_pass_seconds": 0.2, "fp8_pass_seconds": 0.1}
    slower, model = race(tmp_path / "slower", [0.1, 0.2])
    assert (slower.precision, float8_maps(model)) == ("bf16", 0)
    short, model = race(tmp_path / "short", [0.2], passes=5_000)
    assert (short.precision, float8_maps(model)) == ("bf16", 0)


@needs_torchao
@pytest.mark.filterwarnings("ignore")
def test_fp8_that_fails_leaves_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine, model = race(tmp_path, [0.2, RuntimeError("no kernel image\nfor this device")])
    assert (machine.precision, float8_maps(model)) == ("bf16", 0)
    assert "fp8 failed (RuntimeError), training goes on in bf16: no kernel image" in capsys.readouterr().err


def test_fp8_is_no_choice_without_a_card_for_it() -> None:
    assert not may_choose_float8(replace(PLAIN, precision="bf16", compiled=True), WORLD.device)


def test_cuda_graphs_need_a_gpu(tmp_path: Path) -> None:
    settings = training_settings(compile="cuda_graphs")
    reader = open_rows([write_token_set(tmp_path, "documents", {"books": 9})], "train", 24)
    plan = make_plan(reader.sources, training_settings(sequence_length=24), 1)
    with pytest.raises(MachineError, match="needs one process with one CUDA GPU, not 1 x cpu"):
        prepare(tmp_path, Llama(MODEL, 0), NextToken(), PLAIN, WORLD, settings, reader, plan)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_change_nothing() -> None:
    """Weights after steps of two micro-batches each, by graphs and without."""
    weights = []
    for graphs in (False, True):
        model = Llama(MODEL, 0).cuda()
        compile_in_place(model, graphs)
        optimizer = make_optimizer(model, training_settings(), has_fast_bf16=True)
        if graphs:
            optimizer.keep_gradient_memory()
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            for _ in range(2):
                tokens = torch.randint(MODEL.vocabulary_size, (4, 24), generator=generator).cuda()
                loss = model(tokens, None, tokens, torch.ones(4, 24, device="cuda") / 192)
                loss.loss_sum.backward()
            optimizer.step(1.0)
            optimizer.clear_gradients()
        weights.append({name: value.detach().clone() for name, value in model.named_parameters()})
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])


def test_tokens_go_onto_the_device_where_that_is_wanted(tmp_path: Path) -> None:
    documents = open_rows([write_token_set(tmp_path / "documents", "documents", {"books": 9})], "train", 24)
    preferences = open_rows([write_token_set(tmp_path / "preferences", "preferences", {"books": 9})], "train", None)
    assert isinstance(on_device(documents, WORLD, "on"), ResidentRows)
    assert on_device(documents, WORLD, "auto") is documents
    assert on_device(documents, WORLD, "off") is documents
    assert on_device(preferences, WORLD, "on") is preferences
