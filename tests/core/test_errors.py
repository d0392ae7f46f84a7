from __future__ import annotations

import inspect
import multiprocessing
import signal

import pytest

from fledge.core import errors
from fledge.core.errors import CheckpointError, ConfigError, FledgeError, Stopped


def test_a_message_is_the_problem_and_then_the_remedy() -> None:
    error = ConfigError("steps is -1 (a.yaml:3)", "change steps")
    assert str(error) == "steps is -1 (a.yaml:3)\nchange steps"
    assert (error.problem, error.remedy) == ("steps is -1 (a.yaml:3)", "change steps")


def test_every_exit_code_is_the_documented_one() -> None:
    classes = {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, FledgeError)}
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("|", " ").replace("+--", " ").split()
        if len(words) > 1 and words[0] in classes and words[1].isdigit() and words[0] != "Stopped":
            drawn[words[0]] = int(words[1])
    assert drawn == {name: one.exit_code for name, one in classes.items() if name != "Stopped"}
    assert set(drawn.values()) == {1, 2, 3, 4, 5, 6, 7}


def test_a_checkpoint_is_an_artifact() -> None:
    assert issubclass(CheckpointError, errors.ArtifactError)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_exits_as_shells_expect(number: signal.Signals, code: int) -> None:
    stopped = Stopped(number, "stopped after step 5", "run the same command again: it continues")
    assert stopped.exit_code == code
    assert FledgeError.exit_code == 1


@pytest.mark.parametrize("error", [FledgeError("what", "do"), CheckpointError("what", "do"), Stopped(15, "what", "do")])
def test_an_error_is_the_same_in_another_process(error: FledgeError) -> None:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        ours.send(error)
        arrived = theirs.recv()
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.problem, arrived.remedy, arrived.exit_code) == (str(error), "what", "do", error.exit_code)
