"""What can go wrong for a user, as one tree; the command line turns each into two lines and an exit code.

    FledgeError                  1
    +-- ConfigError              2   a recipe, an override or the command line
    +-- DataError                3   a corpus, a tokenizer or a token set cannot be used as it is
    +-- ArtifactError            4   a finished result contradicts what was asked, or is damaged
    |   +-- FormatError          4   another version of Fledge made it
    |   +-- CheckpointError      4   the same, of a checkpoint
    +-- MachineError             5   disk, memory, device, a missing package
    +-- NumericsError            6   the loss or the weights left the finite numbers
    +-- DistributedError         7   a rank is gone or ranks disagree
    +-- Stopped                128 + signal   asked to stop; what was asked for before is saved

A message says what is wrong with which value and where; the remedy says what to do. `assert` is kept for our own bugs.
"""

from __future__ import annotations


class FledgeError(Exception):
    """Something the user can mend. `problem`: what and where. `remedy`: what to do, often a command."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        # All arguments go to the base, which hands them to the class again when an error arrives from a worker process.
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}"


class ConfigError(FledgeError):
    """A recipe, an override or the command line asks for something that cannot be."""

    exit_code = 2


class DataError(FledgeError):
    """A corpus, a tokenizer or a token set cannot be used as it is."""

    exit_code = 3


class ArtifactError(FledgeError):
    """A finished result contradicts what was asked, or is damaged."""

    exit_code = 4


class FormatError(ArtifactError):
    """A result of another version of Fledge, which this one cannot read and must not take for damaged."""


class CheckpointError(ArtifactError):
    """A checkpoint is missing, damaged or does not fit."""


class MachineError(FledgeError):
    """The machine lacks disk, memory, a device or a package."""

    exit_code = 5


class NumericsError(FledgeError):
    """The loss or the weights left the finite numbers."""

    exit_code = 6


class DistributedError(FledgeError):
    """A rank is gone, or the ranks disagree."""

    exit_code = 7


class Stopped(FledgeError):
    """A signal asked the run to stop and it did, at a border where nothing is lost."""

    def __init__(self, signal_number: int, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.args = (signal_number, problem, remedy)
        self.exit_code = 128 + signal_number
