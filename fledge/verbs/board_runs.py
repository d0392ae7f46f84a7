"""Runs that the board starts: the same command line that a person would type, spawned as it is shown.

form    a recipe's values, with what may be said of each; checked by the parser of recipes
plan    `fledge plan ... --json`, in a process of its own, because it measures and needs torch; it ends with the board
start   `fledge run ...` in a session of its own, so that it goes on when the board ends; SIGTERM to its group makes it save and end
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fledge.core.errors import ConfigError, DataError, MachineError
from fledge.core.form import form_fields
from fledge.recipe import find_recipe, load_recipe, packaged_recipes
from fledge.serving.board.launching import AskedRun
from fledge.smoke import smoke
from fledge.stages import STAGES, has_stage
from fledge.stages.run import RUNS, Run, smoke_name

PLAN_SECONDS = 600
SHOWN_LINES = 40
_SHOWN_BYTES = 16 << 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CHANGED = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_RECIPE_SUFFIXES = (".yaml", ".json")


@dataclass(frozen=True)
class _Started:
    """A process of ours."""

    run: str
    command: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    """A file without a name, which the process goes on writing to whatever becomes of the board."""

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None


class RunLauncher:
    """Starts runs in a folder of runs, from the recipes of the package and of the working folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[_Started] = []
        self._changing = threading.Lock()
        """Held by whoever looks at what was started: another thread may close an output meanwhile."""
        self._planning = threading.Lock()
        self._plan: subprocess.Popen[str] | None = None

    def recipes(self) -> list[dict[str, Any]]:
        """Name, where it lies, and its first comment."""
        found = [(name, path, "comes with Fledge") for name, path in packaged_recipes().items()]
        own = sorted(path for path in Path().iterdir() if path.suffix in _RECIPE_SUFFIXES and path.is_file())
        found += [(str(path), path, "in the working folder") for path in own]
        return [{"name": name, "origin": origin, "about": _first_comment(path)} for name, path, origin in found]

    def form(self, asked: AskedRun) -> dict[str, Any]:
        """The values with these changes, and the command line. Raises ConfigError."""
        recipe, tree = load_recipe(self._recipe(asked), _overrides(asked))
        shown = smoke(recipe) if asked.smoke else recipe
        name = self._name(asked)
        return {
            "fields": [asdict(field) for field in form_fields(recipe, tree)],
            "shrunk": {field.name: field.value for field in form_fields(shown, tree)} if asked.smoke else {},
            "stages": [stage for stage in STAGES if has_stage(stage, Run(recipe, self._folder, ""))],
            "name": name,
            "command": _shown(self._arguments(asked, name)),
            "exists": (self._folder / name).exists(),
        }

    def plan(self, asked: AskedRun) -> dict[str, Any]:
        """What `fledge plan` says of it. Raises ConfigError with its words, MachineError while another plan is made."""
        arguments = self._arguments(asked, self._valid_name(asked), with_last=False)
        if not self._planning.acquire(blocking=False):
            raise MachineError("another plan is being made", "wait for it: it measures the speed of this machine")
        try:
            said, noted, exit_code = self._finish_plan([*_FLEDGE, "plan", *arguments, "--json", "--log-level", "error"])
        finally:
            self._planning.release()
        if exit_code != 0:
            raise ConfigError(*_told(noted))
        plan: dict[str, Any] = json.loads(said[said.index("{") :])
        return plan

    def _finish_plan(self, command: Sequence[str]) -> tuple[str, str, int]:
        """What it says, what it notes, and its exit code. Raises MachineError if it takes too long."""
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            self._plan = process
            try:
                said, noted = process.communicate(timeout=PLAN_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise MachineError(f"no plan after {PLAN_SECONDS} s", "plan a smaller run, or start it without a plan") from error
            finally:
                self._end_plan()
        return said, noted, process.returncode

    def _end_plan(self) -> None:
        """Nothing of it is worth keeping."""
        plan, self._plan = self._plan, None
        if plan is not None and plan.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(plan.pid, signal.SIGKILL)

    def start(self, asked: AskedRun) -> dict[str, Any]:
        """Spawn it. Raises ConfigError, and MachineError if it cannot be started or a run of that name was started from here."""
        name = self._valid_name(asked)
        arguments = self._arguments(asked, name)
        with self._changing:
            if any(one.run == name and one.is_running for one in self._started):
                raise MachineError(f"{name} is running", "stop it first, or give another name")
            output = tempfile.TemporaryFile()  # noqa: SIM115 it outlives this call
            try:
                process = subprocess.Popen(
                    [*_FLEDGE, "run", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise MachineError(
                    f"the run cannot be started: {error.strerror}", "close other programs, or start it in a terminal"
                ) from error
            for before in [one for one in self._started if one.run == name]:
                before.output.close()
                self._started.remove(before)
            self._started.append(_Started(name, _shown(arguments), process, output))
        return {"run": name, "command": _shown(arguments)}

    def started(self) -> list[dict[str, Any]]:
        """The newest first."""
        with self._changing:
            return [
                {"run": one.run, "command": one.command, "exit_code": one.process.poll(), "lines": _last_lines(one.output)}
                for one in reversed(self._started)
            ]

    def stop(self, run: str) -> None:
        """SIGTERM to its process group. Raises DataError if it was not started from here, or has ended."""
        with self._changing:
            found = next((one for one in self._started if one.run == run and one.is_running), None)
            if found is None:
                raise DataError(f"{run!r} does not run, or was not started from here", "stop it where it was started (Ctrl-C saves)")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(found.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """Let go of what was started; runs that still work go on, a plan ends."""
        self._end_plan()
        with self._changing:
            for one in self._started:
                one.output.close()
            self._started.clear()

    @property
    def running(self) -> dict[str, int]:
        """The runs that still work, each with the number of its process, which is that of its group too."""
        with self._changing:
            return {one.run: one.process.pid for one in self._started if one.is_running}

    def _recipe(self, asked: AskedRun) -> Path:
        if asked.recipe not in {one["name"] for one in self.recipes()}:
            raise ConfigError(f"there is no recipe {asked.recipe!r} in the list", "choose one of the list")
        return find_recipe(asked.recipe)

    def _valid_name(self, asked: AskedRun) -> str:
        """The run's name, to be asked for once: when its folder is there, the next free one is another. Raises ConfigError."""
        load_recipe(self._recipe(asked), _overrides(asked))
        return self._name(asked)

    def _name(self, asked: AskedRun) -> str:
        """The one that is asked for, or the first that is free."""
        if asked.name is not None:
            if not _NAME.fullmatch(asked.name):
                raise ConfigError(f"{asked.name!r} cannot be the name of a run", "use letters, digits, points, hyphens and underscores")
            return asked.name
        stem = Path(asked.recipe).stem
        first = smoke_name(stem) if asked.smoke else stem
        names = (first, *(f"{first}-{number}" for number in range(2, 10_000)))
        return next(name for name in names if not (self._folder / name).exists())

    def _arguments(self, asked: AskedRun, name: str, with_last: bool = True) -> list[str]:
        if asked.last_stage is not None and asked.last_stage not in STAGES:
            raise ConfigError(f"there is no stage {asked.last_stage!r}", f"name one of {', '.join(STAGES)}")
        place = name if self._folder == RUNS else f"{self._folder}/{name}" if self._folder.name else f"./{name}"
        last = ["--to", asked.last_stage] if asked.last_stage and with_last else []
        return [asked.recipe, *_overrides(asked), *last, "--name", place, *(["--smoke"] if asked.smoke else [])]


_FLEDGE = (sys.executable, "-m", "fledge")


def _shown(arguments: Sequence[str]) -> str:
    """What a person would type for what is spawned."""
    return shlex.join(["fledge", "run", *arguments])


def _overrides(asked: AskedRun) -> list[str]:
    for name in asked.changes:
        if not _CHANGED.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a value", "change values that the form has")
    if any("\0" in value for value in asked.changes.values()):
        raise ConfigError("a value holds a NUL character, which no command line can", "take it out")
    return [f"{name}={value}" for name, value in asked.changes.items()]


def _told(noted: str) -> tuple[str, str]:
    """Problem and remedy out of the two lines that a failed verb ends with."""
    lines = noted.strip().splitlines() or ["error: it ended without a word"]
    problem = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), lines[-1])
    remedy = next((line.removeprefix("  fix: ") for line in reversed(lines) if line.startswith("  fix: ")), "try it in a terminal")
    return problem, remedy


def _last_lines(output: IO[bytes]) -> list[str]:
    """Read without moving the place at which the process writes."""
    size_bytes = os.fstat(output.fileno()).st_size
    start = max(0, size_bytes - _SHOWN_BYTES)
    text = os.pread(output.fileno(), _SHOWN_BYTES, start).decode("utf-8", errors="replace")
    return text.replace("\r", "\n").splitlines()[-SHOWN_LINES:]


def _first_comment(path: Path) -> str:
    """What a recipe says of itself at its top."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace")[:4_000].splitlines()
    except OSError:
        return ""
    comment: list[str] = []
    for line in lines:
        if not line.startswith("#") or line.strip() == "#":
            break
        comment.append(line.lstrip("# ").strip())
    return " ".join(comment)
