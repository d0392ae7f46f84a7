"""Work is done piece by piece, whoever comes to help; answers have the same bits with any number of threads."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest
import torch

from fledge.inference import crew as crew_module
from fledge.inference import kernel_forward
from fledge.inference.crew import Crew
from fledge.inference.forward import Chunk
from fledge.inference.kernel_forward import KernelForward, PackedModel
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings


@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_each_piece_is_done_once_and_all_are_when_it_returns(helpers: int) -> None:
    crew = Crew(helpers)
    for pieces in (0, 1, 2, 3, 50):
        done: list[int] = []
        crew.divide(pieces, done.append)
        assert sorted(done) == list(range(pieces))


def test_a_helper_really_helps() -> None:
    """Two pieces that wait for each other are done by two threads."""
    meeting = threading.Barrier(2, timeout=60)

    def meet(number: int) -> None:
        meeting.wait()

    Crew(1).divide(2, meet)


def test_nobody_is_waited_for_who_does_not_come() -> None:
    """The only helper is at a piece of somebody else's work, which does not end."""
    crew, both_at_it, gate = Crew(1), threading.Barrier(3, timeout=60), threading.Event()

    def work_without_end(number: int) -> None:
        both_at_it.wait()
        gate.wait(60)

    somebody = threading.Thread(target=crew.divide, args=(2, work_without_end))
    somebody.start()
    both_at_it.wait()
    done: list[int] = []
    crew.divide(5, done.append)
    assert done == [0, 1, 2, 3, 4] and not gate.is_set()
    gate.set()
    somebody.join()


def test_pieces_may_have_pieces() -> None:
    crew = Crew(2)
    done: list[tuple[int, int]] = []
    crew.divide(4, lambda outer: crew.divide(4, lambda inner: done.append((outer, inner))))
    assert sorted(done) == [(outer, inner) for outer in range(4) for inner in range(4)]


@pytest.mark.parametrize("helpers", [0, 2])
def test_what_a_piece_raises_is_raised_when_the_others_are_done(helpers: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 1:
            raise ValueError("piece 1")
        done.append(number)

    with pytest.raises(ValueError, match="piece 1"):
        Crew(helpers).divide(6, work)
    assert sorted(done) == [0, 2, 3, 4, 5]


def test_bits_do_not_depend_on_how_much_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128)
    model = Llama(ModelConfig(settings, 2048))
    chunks = [Chunk(0, 0, list(range(70)), "all"), Chunk(1, 0, [5], "last"), Chunk(2, 0, [7, 8], "last")]
    monkeypatch.setattr(kernel_forward, "PIECE_PRODUCTS", 1)
    threads_before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            forward = KernelForward(PackedModel(model, "fp32"), 3, 128)
            found.append([*forward.run(chunks), *forward.run([Chunk(1, 1, [9], "last")])])
    finally:
        torch.set_num_threads(threads_before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_those_who_ask_at_once_get_the_same_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who makes a crew waits a little for another to make one too, who must not."""
    both_make = threading.Barrier(2)
    made: list[Crew] = []

    class SlowCrew(Crew):
        def __init__(self, helpers: int) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                both_make.wait(0.1)
            super().__init__(helpers)
            made.append(self)

    monkeypatch.setattr(crew_module, "Crew", SlowCrew)
    monkeypatch.setattr(crew_module, "_crews", {})
    found: list[Crew] = []
    askers = [threading.Thread(target=lambda: found.append(crew_module.crew(1))) for _ in range(2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(made) == 1 and found == made * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_has_a_crew_of_its_own() -> None:
    before = kernel_forward.crew(2)
    child = os.fork()
    if child == 0:
        meeting = threading.Barrier(2, timeout=60)

        def meet(number: int) -> None:
            meeting.wait()

        kernel_forward.crew(2).divide(2, meet)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert kernel_forward.crew(2) is before
