"""`fledge push` and `fledge pull`: which folder or run is meant; the work is done in `publish/`."""

from __future__ import annotations

from pathlib import Path

from fledge.core import artifact, console
from fledge.core.errors import ArtifactError, ConfigError
from fledge.corpus.sources.hub import Kind
from fledge.publish import pulling, pushing
from fledge.publish.hub import Repository, require_name
from fledge.publish.watching import Watch, watch
from fledge.stages import STAGES, TRAINING_STAGES
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.corpus import WORK
from fledge.stages.run import run_folder, smoke_name
from fledge.verbs.export import require_free


def push(place: str, repository: str, kind: Kind | None, public: bool, revision: str, small: bool) -> None:
    """Send a checkpoint, a corpus, a token set or a folder of others. Raises ArtifactError if there is none."""
    console.say(pushing.push(_folder(smoke_name(place) if small else place), repository, kind, public, revision))


def push_while_training(run: str, repository: str, public: bool, revision: str, keep: int, small: bool) -> None:
    """Send what a run makes until its training is over; the run need not have begun. Raises ConfigError if RUN is no name of one."""
    folder = run_folder(smoke_name(run) if small else run)
    if "@" in run or (folder / artifact.MANIFEST).is_file():
        raise ConfigError(f"{run} is no run but a result of one", "give the run's folder or name, or leave out --watch")
    watch(Watch(folder, Repository(repository, "model", revision), STAGES, TRAINING_STAGES, WORK, keep), public)


def pull(repository: str, folder: Path, kind: Kind | None, revision: str) -> None:
    """Bring a repository to a folder, which must not be there yet. Raises DataError if it is not on the hub."""
    require_name(repository)
    require_free(folder)
    console.say(pulling.pull(repository, folder, kind, revision))
    if any((folder / stage / artifact.STARTED).is_file() for stage in TRAINING_STAGES):
        console.say(f"next:     the command of this run, with --name {folder if '/' in str(folder) else f'./{folder}'}: it continues")


def _folder(place: str) -> Path:
    """The folder of an artifact, or of a checkpoint by its name."""
    folder = Path(place)
    if not (folder / artifact.MANIFEST).is_file():
        is_of_others = folder.is_dir() and any(folder.glob("*.gguf"))
        return folder if is_of_others else find_checkpoint(place)
    kind = artifact.open_artifact(folder, sizes=False).manifest.kind
    if kind == "training":
        return find_checkpoint(place)
    if kind in {"corpus", "tokens", "checkpoint"} or (folder / "config.json").is_file():
        return folder
    raise ArtifactError(f"{place} is a {kind}, which is neither a model nor a dataset", "name a checkpoint, a corpus or a token set")
