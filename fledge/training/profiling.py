"""Where the time of some steps goes, for those who ask: an observer starts torch's profiler before them and writes a trace after them.

    runs/NAME/STAGE/profile/steps-10-12/trace.json.gz      the Chrome trace format; ui.perfetto.dev opens it as it is

Without the setting there is no such observer. With it, only the steps in the trace are slower.
"""

from __future__ import annotations

from pathlib import Path

from torch.profiler import profile

from fledge.core import console, disk
from fledge.training.settings import ProfileSettings
from fledge.training.trainer import StepReport

PROFILE = "profile"
TRACE = "trace.json.gz"


class Profile:
    """Traces some steps of the main process."""

    def __init__(self, settings: ProfileSettings, folder: Path, start_step: int, steps: int, main: bool) -> None:
        """`start_step`: steps done before this process began, from which the settings count; `steps`: of the whole run."""
        self._first_step = start_step + settings.first_step
        self._last_step = min(self._first_step + settings.steps - 1, steps)
        self._folder, self._main = folder, main
        self._profiler: profile | None = None

    def due(self, step: int) -> bool:
        return self._main and self._first_step <= self._last_step and step in (self._first_step - 1, self._last_step)

    def observe(self, report: StepReport) -> dict[str, float]:
        if self._profiler is None:
            self._profiler = profile()
            self._profiler.start()
        else:
            self._profiler.stop()
            self._write(self._profiler)
        return {}

    def _write(self, profiler: profile) -> None:
        """A trace of the same steps that is there already makes room."""
        place = self._folder / PROFILE / f"steps-{self._first_step}-{self._last_step}"
        disk.remove(place)
        with disk.staging(place) as partial:
            profiler.export_chrome_trace(str(partial / TRACE))
        console.say(f"a trace of steps {self._first_step:,} to {self._last_step:,} lies in {place / TRACE}: open it at ui.perfetto.dev")
