"""`fledge push RUN REPOSITORY --watch`: what a run makes goes to the hub while it trains, so that another machine can go on with it.

    corpus, tokenizer, token sets, scores, ...    once each, when they are finished
    work/corpus/places.json, sources.json         by which the corpus is found finished where its sources are not
    STAGE/checkpoints/step-000500, and STAGE's    one commit for the newest and for the best checkpoint, each verified before; older ones
    stage.json, machine.json, metrics.jsonl       are taken off the hub but for the last few

A process of its own, which only reads the run: training neither waits for it nor knows of it. A checkpoint is given a second name (a hard
link) before it is read, so training may remove it meanwhile; the links lie in `.NAME.push` beside the run. Every commit is a state that
`fledge pull` makes a run folder of, from which the same command continues.

When the hub stays away, that is told, and what is then the newest goes out when it is back. Only a refusal (no rights) is an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fledge.core import artifact, console, disk, process
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError, MachineError, Stopped
from fledge.core.process import StopSignals
from fledge.corpus.resolve import known_of_sources
from fledge.corpus.sources import attempts
from fledge.corpus.sources.piece import InputFile
from fledge.publish.hub import Repository, Stale, create, is_same, publish, require_name, require_token
from fledge.publish.parcel import Item, is_safe, item_of, items_of, leaves, without_places
from fledge.training.checkpoint_folders import CHECKPOINTS, Checkpoint, best_checkpoint, list_checkpoints
from fledge.training.sound_checkpoints import problems_of

LOOK_SECONDS = 5.0
"""Between two looks at the run."""
_WAIT_SECONDS = 0.2
"""After which a signal is seen."""


@dataclass
class Watch:
    """A run that is sent to a repository. `stages` in their order; `keep`: checkpoints of each training stage that stay on the hub."""

    run: Path
    repository: Repository
    stages: Sequence[str]
    training_stages: Sequence[str]
    sources: Path
    """Where in the run is kept what is known of the sources."""
    keep: int
    _sent: set[str] = field(default_factory=set)
    """Ids of artifacts and states of stages that the hub has, and of damaged ones that it does not get."""

    def look(self) -> None:
        """Send what is new. Raises DataError if the hub refuses, MachineError if it stays away."""
        for stage in self.stages:
            if stage in self.training_stages:
                self._send_stage(stage)
            else:
                for folder in (self.run / stage, *sorted((self.run / stage).glob("*"))):
                    if folder.suffix != disk.PARTIAL_SUFFIX and (folder / artifact.MANIFEST).is_file():
                        self._send_artifact(artifact.open_artifact(folder))
        self._send_known_of_sources()

    def is_over(self) -> bool:
        """Whether nobody works on the run, and each training stage that was begun is finished, one at least."""
        begun = [self.run / stage for stage in self.training_stages if (self.run / stage / artifact.STARTED).is_file()]
        return bool(begun) and all((one / artifact.MANIFEST).is_file() for one in begun) and not process.is_in_use(self.run)

    @property
    def links(self) -> Path:
        """Where checkpoints have their second names."""
        return self.run.parent / f".{self.run.name}.push"

    def _send_artifact(self, found: Artifact) -> None:
        if found.id in self._sent:
            return
        place = found.path.relative_to(self.run).as_posix()
        self._publish([*items_of(found, f"{place}/")], f"{place} {found.id[:12]}", lambda there: _below(there, f"{place}/"), place)
        self._sent.add(found.id)

    def _send_known_of_sources(self) -> None:
        items = [item_of(path.relative_to(self.run).as_posix(), path.read_bytes()) for path in known_of_sources(self.run / self.sources)]
        state = "".join(item.digest.sha256 for item in items)
        if items and state not in self._sent:
            self._publish(items, "where the sources of the corpus were", lambda there: (), str(self.sources))
            self._sent.add(state)

    def _send_stage(self, stage: str) -> None:
        found = list_checkpoints(self.run / stage)
        best = best_checkpoint(self.run / stage)
        is_finished = (self.run / stage / artifact.MANIFEST).is_file()
        # The newest last: where a pull goes on is what the last commit says.
        for one in sorted({one.step: one for one in (best, *found[-1:]) if one is not None}.values(), key=lambda one: one.step):
            state = f"{one.artifact.id} {is_finished and one is found[-1]}"
            if state not in self._sent and self._send_checkpoint(stage, one, best):
                self._sent.add(state)

    def _send_checkpoint(self, stage: str, one: Checkpoint, best: Checkpoint | None) -> bool:
        """False if it has gone before it could be read."""
        self._warn_of_inputs(stage)
        linked = self._linked(stage, one)
        if linked is None:
            return False
        place = f"{stage}/{CHECKPOINTS}/{one.path.name}"
        problems = problems_of(linked)
        if problems:
            console.warn(f"{place} is damaged and not sent: {problems[0]}")
            return True
        items = [*items_of(artifact.open_artifact(linked), f"{place}/", is_verified=True), *self._beside(stage, one)]
        newest = list_checkpoints(self.run / stage)[-1:] or [one]
        stale = _older(stage, items, self.keep, {one.step} | ({best.step} if best else set()), newest[0].step)
        self._publish(items, f"{stage}: step {one.step}", stale, place)
        return True

    def _linked(self, stage: str, one: Checkpoint) -> Path | None:
        """The checkpoint under its second name; None if it was removed meanwhile."""
        folder = self.links / stage
        disk.remove(folder)
        target = folder / CHECKPOINTS / one.path.name
        try:
            disk.link(self.run / stage / artifact.STARTED, folder / artifact.STARTED)
            for name in (*one.artifact.manifest.files, artifact.MANIFEST):
                disk.link(one.path / name, target / name)
        except MachineError:
            if (one.path / artifact.MANIFEST).is_file():
                raise
            return None
        return target

    def _beside(self, stage: str, one: Checkpoint) -> list[Item]:
        """What else a stage continues from, as it is now; its last record may be cut off, which resuming mends.

        That the stage is finished is said beside its final checkpoint only: whatever is on the hub can be continued from.
        """
        items = []
        for path in sorted((self.run / stage).iterdir()):
            name = f"{stage}/{path.name}"
            if path.name == artifact.STARTED or (path.name == artifact.MANIFEST and _final(path.parent) == one.path.name):
                items.append(without_places(name, path, 1))
            elif path.name != artifact.MANIFEST and path.is_file() and is_safe(path.name):
                items.append(item_of(name, path.read_bytes()))
        return items

    def _warn_of_inputs(self, stage: str) -> None:
        started = artifact.started_as(self.run / stage)
        for role, given in (started.inputs if started else {}).items():
            if given.id not in self._sent and leaves(os.path.relpath(given.path, self.run / stage), 1):
                console.warn(f"{stage} needs {role}, {given.kind} {given.id[:12]}, from outside the run: push {given.path} by itself")
                self._sent.add(given.id)

    def _publish(self, items: Sequence[Item], message: str, stale: Stale, place: str) -> None:
        started = time.monotonic()
        if publish(self.repository, items, message, stale):
            size = console.format_bytes(sum(item.digest.size_bytes for item in items))
            console.say(f"{place}: {size} in {self.repository}; {console.format_seconds(time.monotonic() - started)}")
        else:
            console.info(f"{place}: in {self.repository} already")


def watch(one: Watch, public: bool) -> None:
    """Send what the run makes until its training is over. Raises Stopped on a signal, after the upload that is on its way."""
    require_name(one.repository.name)
    require_token()
    with process.run_lock(one.links), StopSignals("this upload") as stop:
        attempts.PAUSE.set(lambda seconds: _pause(stop, seconds))
        try:
            with contextlib.suppress(attempts.Stopped):
                _look_until_over(one, public, stop)
        finally:
            disk.remove(one.links)
    if stop.requested is not None:
        raise Stopped(stop.requested, f"no longer watching {one.run}", "run the same command again: what is on the hub is not sent again")
    console.say(f"{one.run}: its training is over, and all of it is in {one.repository}")


def _look_until_over(one: Watch, public: bool, stop: StopSignals) -> None:
    is_there, told = False, ""
    while True:
        # Asked before the look, so that the look sees all that was made until then.
        is_over, is_stopped = one.is_over(), stop.requested is not None
        is_sent = False
        try:
            if not is_there:
                create(one.repository, public)
                is_there = True
            one.look()
            is_sent = True
        except (MachineError, ArtifactError, FileNotFoundError) as error:
            # What is damaged or missing here stays so; but what is being replaced may look so for a moment.
            problem = f"{error.filename} is gone" if isinstance(error, FileNotFoundError) else error.problem
            if is_over and not isinstance(error, MachineError):
                raise ArtifactError(problem, "restore it, then run the same command again") from error
            if problem != told:
                console.warn(f"not sent yet: {problem}; trying again")
            told = problem
        if is_stopped or (is_over and is_sent):
            return
        with contextlib.suppress(attempts.Stopped):
            _pause(stop, LOOK_SECONDS)


def _pause(stop: StopSignals, seconds: float) -> None:
    """Wait so long; a signal that comes meanwhile, or came before, ends it: nobody waits for the hub any more."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if stop.requested is not None:
            raise attempts.Stopped
        time.sleep(min(_WAIT_SECONDS, max(0.0, end - time.monotonic())))


def _below(there: Collection[InputFile], place: str) -> list[str]:
    return [file.name for file in there if file.name.startswith(place)]


def _final(stage_folder: Path) -> str:
    """The folder name of a finished stage's final checkpoint."""
    return str(artifact.open_artifact(stage_folder, sizes=False).stats["final"]).rpartition("/")[2]


def _older(stage: str, items: Sequence[Item], keep: int, kept: set[int], newest: int) -> Stale:
    """Of a stage on the hub: checkpoints that are neither kept nor among the last few, or of a time that the run has no more.

    That is so after `--resume` for steps above its newest, after `--force` for all; and files that the stage has no more go too.
    """
    pattern = re.compile(rf"{stage}/{CHECKPOINTS}/step-(\d+)/.*")
    ours = {item.name: item for item in items}
    started = f"{stage}/{artifact.STARTED}"

    def stale(there: Collection[InputFile]) -> list[str]:
        below = {file.name: file.fingerprint for file in there if file.name.startswith(f"{stage}/")}
        steps = {name: int(found[1]) for name in below if (found := pattern.fullmatch(name))}
        is_of_this_run = started in below and is_same(ours[started], below[started])
        earlier = sorted(step for step in {*steps.values(), *kept} if step <= newest) if is_of_this_run else []
        staying = {*earlier[-keep:], *kept}
        return [name for name in below if (steps[name] not in staying if name in steps else name not in ours)]

    return stale
