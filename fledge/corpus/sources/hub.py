"""Datasets of the Hugging Face hub: the commit a branch names now, and the files of a dataset at a commit; of models likewise.

What a dataset holds at a commit never changes, so its list is kept in the cache: a rerun needs no network, and `fledge corpus
--list` can say how much of a dataset is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from fledge.core import __version__, disk
from fledge.core.errors import DataError, MachineError
from fledge.corpus.sources.attempts import Failure, retried
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.transport import status_error

AnyResult = TypeVar("AnyResult")

Kind = Literal["model", "dataset"]
"""What a repository of the hub holds; the two have names of their own."""

_LISTINGS = "listings"


@dataclass(frozen=True)
class Listing:
    """The files of a dataset that a glob takes, at a commit."""

    repository: str
    glob: str
    commit: str
    files: tuple[InputFile, ...]


def commit_of(repository: str, revision: str, kind: Kind = "dataset") -> str:
    """The commit a branch or tag of a repository names now. Raises DataError if there is none, MachineError if the hub is away."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision

    def ask() -> str:
        from huggingface_hub import HfApi

        api = HfApi(library_name="fledge", library_version=__version__)
        return str(api.repo_info(repository, revision=revision, repo_type=kind, timeout=30).sha)

    return _asked(f"{repository}@{revision}", ask, kind)


def all_files(repository: str, commit: str, kind: Kind) -> list[InputFile]:
    """Every file of a repository at a commit, sorted by path. Raises DataError if it is not there, MachineError if the hub is away."""

    def ask() -> list[InputFile]:
        from huggingface_hub import HfApi, RepoFile

        api = HfApi(library_name="fledge", library_version=__version__)
        found = api.list_repo_tree(repository, recursive=True, revision=commit, repo_type=kind)
        root = _address(f"{repository}@{commit}", kind)
        files = [one for one in found if isinstance(one, RepoFile)]
        return [InputFile(f"{root}/{one.path}", one.path, one.size, one.lfs.sha256 if one.lfs else one.blob_id) for one in files]

    return sorted(_asked(f"{repository}@{commit}", ask, kind), key=lambda file: file.name)


def list_files(repository: str, glob: str, commit: str, cache_folder: Path | None) -> Listing:
    """The files of a dataset that a glob takes, sorted by path; from the cache if they were listed before."""
    kept = cache_folder and _listing_path(cache_folder, repository, glob, commit)
    found = _read(kept) if kept else None
    if found is not None:
        return found
    listing = _asked(f"{repository}@{commit}", lambda: _look_up(repository, glob, commit))
    if kept and listing.files:
        disk.write_json(kept, asdict(listing))
    return listing


def listings(repository: str, cache_folder: Path) -> list[Listing]:
    """Every list of the files of a dataset that the cache holds, the newest last."""
    folder = _folder(cache_folder, repository)
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name)) if folder.is_dir() else []
    return [listing for listing in map(_read, paths) if listing is not None]


def snapshot(repository: str, revision: str, patterns: Sequence[str], kind: Kind = "dataset") -> Path:
    """The folder of a repository in the hub library's own cache, downloaded as far as the patterns go.

    Raises DataError if there is no such repository, MachineError if the hub is away and the cache lacks it.
    """

    def ask() -> str:
        import huggingface_hub

        found = huggingface_hub.snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=list(patterns), library_name="fledge"
        )
        return str(found)

    return Path(_asked(f"{repository}@{revision}", ask, kind))


def snapshot_folder(repository: str, kind: Kind) -> Path:
    """Where the hub library keeps a repository, whether it is there or not: files in `blobs`, also those that are still coming."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind)


def has_token() -> bool:
    """Whether the hub's library would tell the hub who asks."""
    from huggingface_hub import constants, get_token

    return not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and get_token() is not None


def _look_up(repository: str, glob: str, commit: str) -> Listing:
    from huggingface_hub import HfFileSystem

    filesystem = HfFileSystem(skip_instance_cache=True)
    root = f"datasets/{repository}@{commit}"
    found: Any = filesystem.glob(f"{root}/{glob}", detail=True)
    files = (_input_file(name.removeprefix(f"{root}/"), root, info) for name, info in found.items() if info["type"] == "file")
    return Listing(repository, glob, commit, tuple(sorted(files, key=lambda file: file.name)))


def _input_file(path: str, root: str, info: dict[str, Any]) -> InputFile:
    """Large files are named by the SHA-256 of their content, small ones by their git blob id."""
    digest = info["lfs"]["sha256"] if info.get("lfs") else info["blob_id"]
    return InputFile(f"hf://{root}/{path}", path, int(info["size"]), str(digest))


def _asked(what: str, call: Callable[[], AnyResult], kind: Kind = "dataset") -> AnyResult:
    def attempt() -> AnyResult:
        with hub_errors(what, kind):
            return call()

    return retried(attempt)


@contextlib.contextmanager
def hub_errors(what: str, kind: Kind) -> Iterator[None]:
    """Errors of the hub's library as DataError, MachineError or Failure; their own texts hold addresses and request ids."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise MachineError(f"{kind} {what} was not looked up before, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE once") from error
    except LocalEntryNotFoundError as error:
        raise MachineError(f"{kind} {what} is not in the cache, and the hub does not answer", "try again with a network") from error
    except GatedRepoError as error:
        raise DataError(f"{kind} {what} asks to accept its terms", "accept them on its page, then log in: hf auth login") from error
    except RevisionNotFoundError as error:
        raise DataError(f"{kind} {what} is not on the hub: it has no such revision", "name a branch, a tag or a commit it has") from error
    except RepositoryNotFoundError as error:
        raise DataError(f"{kind} {what} is not on the hub, or is private", "check OWNER/NAME; for a private one: hf auth login") from error
    except HfHubHTTPError as error:
        raise status_error(_address(what, kind), error.response.status_code, error.response.headers) from error
    except httpx2.TransportError as error:
        raise Failure(f"the hub does not answer about {what} ({type(error).__name__})") from error
    except FileNotFoundError as error:
        raise DataError(f"{kind} {what} is not on the hub", "check OWNER/NAME and the revision") from error
    except ValueError as error:
        # The library refuses names and globs that cannot be, such as a**b.
        raise DataError(f"{kind} {what} cannot be listed: {error}", "check OWNER/NAME and the glob in `files`") from error


def _address(what: str, kind: Kind) -> str:
    return f"hf://{'datasets/' if kind == 'dataset' else ''}{what}"


def _folder(cache_folder: Path, repository: str) -> Path:
    return cache_folder.joinpath("hub", *repository.split("/"), _LISTINGS)


def _listing_path(cache_folder: Path, repository: str, glob: str, commit: str) -> Path:
    digest = hashlib.sha256(f"{commit}\0{glob}".encode()).hexdigest()
    return _folder(cache_folder, repository) / f"{digest[:16]}.json"


def _read(path: Path) -> Listing | None:
    """A kept list; None if there is none, or it is not one of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Listing(found["repository"], found["glob"], found["commit"], tuple(InputFile(**file) for file in found["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
