"""What the facts mean for Fledge: facts -> [checks] -> findings. Pure functions, one for each subject."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from fledge.core.console import format_bytes, format_seconds
from fledge.core.wording import counted
from fledge.verbs.doctor.facts import KernelCache, Package, Place, Resources, Software
from fledge.verbs.doctor.findings import Finding, note, ok, problem

OLDEST_PYTHON = (3, 11)
LEAST_FREE_BYTES, ROOMY_BYTES = 1_000_000_000, 10_000_000_000
"""1B tokens are 4 GB of text and 2 GB of ids; the checkpoints of 100M parameters 4 GB."""
LEAST_MEMORY_BYTES = 2_000_000_000
"""The quickstart's peak is 1.4 GB."""
ENOUGH_OPEN_FILES = 1_024
CLOCK_SECONDS = 2.0
"""Of a file system that is ahead or behind: what was changed is told by the times of files."""
FIRST_PLAUSIBLE_SECONDS = 1_735_689_600.0
"""The beginning of 2025; a clock before it was never set."""
USES = {
    "gigatoken": "the fastest encoder of byte-level BPE",
    "wandb": "metrics to Weights & Biases",
    "py3langid": "languages in quality rules",
    "ray": "a corpus on a Ray cluster",
    "lm-eval": "any task of lm-evaluation-harness",
    "gguf": "fledge export --to gguf and ollama",
    "torchao": "FP8",
    "s3fs": "sources at s3:// addresses",
    "transformers": "fledge export --to hf",
    "accelerate": "accelerate launch",
}
"""What the packages are for that Fledge can do without."""


def check_python(software: Software) -> Iterator[Finding]:
    version = ".".join(map(str, software.python))
    if software.python < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield problem("python", f"{version}, but Fledge needs {oldest} or newer", "make PYTHON=python3.12 quickstart")
    else:
        yield ok("python", f"{version} on {software.system}, {software.executable}")


def check_install(software: Software) -> Iterator[Finding]:
    """Fledge, and the packages it does not work without."""
    if not software.packages:
        yield note("fledge", f"{software.fledge_version} in {software.fledge_folder} is used, but not installed", f"{software.install} .")
        return
    required = [package for package in software.packages if package.extra is None]
    missing = [package for package in required if package.version is None]
    old = [package for package in required if package.is_too_old]
    for package in missing + old:
        has = "is missing" if package.version is None else f"is {package.version}, too old"
        yield problem(package.name, f"{has}, and Fledge does not work without it", _install(software, package))
    if not missing and not old:
        yield ok("fledge", f"{software.fledge_version} in {software.fledge_folder}, with all {len(required)} packages it needs")


def check_extras(software: Software) -> Iterator[Finding]:
    """What is not needed by everybody, one line each."""
    for package in (package for package in software.packages if package.extra is not None):
        use = USES.get(package.name, "")
        if package.version is None:
            yield note(package.name, f"not installed: {use}", _install(software, package))
        elif package.is_too_old:
            yield problem(package.name, f"{package.version} is too old: {use}", _install(software, package))
        else:
            yield ok(package.name, f"{package.version}: {use}")


def _install(software: Software, package: Package) -> str:
    return f"{software.install} {shlex.quote(package.requirement)}"


def check_place(place: Place) -> Iterator[Finding]:
    """Whether a folder can be worked in, and has room."""
    room = f"{format_bytes(place.free_bytes)} of {format_bytes(place.total_bytes)} free in {place.folder}"
    if place.trouble:
        yield problem(place.what, f"{place.folder}: {place.trouble}", _elsewhere(place))
    elif place.free_bytes < LEAST_FREE_BYTES:
        yield problem(place.what, f"only {room}", f"{_elsewhere(place)}, or make room: du -sh {shlex.quote(str(place.there))}/*")
    elif place.free_bytes < ROOMY_BYTES:
        yield note(place.what, f"{room}, little for more than a small run", "fledge plan RECIPE")
    else:
        yield ok(place.what, f"{room}; files can be written, locked and renamed")
    if not place.trouble and abs(place.clock_ahead_seconds) > CLOCK_SECONDS:
        apart = f"{abs(place.clock_ahead_seconds):.0f} s {'ahead of' if place.clock_ahead_seconds > 0 else 'behind'} this machine's"
        yield note(place.what, f"the clock of the file system is {apart}, so changed files may be missed", "sudo chronyc makestep")


def _elsewhere(place: Place) -> str:
    """How to work in another folder."""
    return {
        "runs": "fledge run RECIPE --name /FOLDER/NAME",
        "downloads": "fledge run RECIPE corpus.cache_folder=/FOLDER",
        "temporary files": "export TMPDIR=/FOLDER",
    }.get(place.what, "choose another folder")


def check_memory(resources: Resources) -> Iterator[Finding]:
    """What this process can have, which in a container or a Slurm job is less than the machine has."""
    limit = resources.limits.memory_bytes
    whole = min(resources.total_memory_bytes, limit or resources.total_memory_bytes)
    bounded = (
        "" if limit is None or limit >= resources.total_memory_bytes else f", by a limit below {format_bytes(resources.total_memory_bytes)}"
    )
    found = f"{format_bytes(resources.available_memory_bytes)} of {format_bytes(whole)} free{bounded}"
    if resources.available_memory_bytes < LEAST_MEMORY_BYTES:
        yield problem(
            "memory", f"only {found}", "ps aux --sort=-rss | head" if not bounded else "ask for more: docker run --memory 8g, srun --mem 8G"
        )
    else:
        yield ok("memory", found)


def check_cores(resources: Resources, threads: int | None) -> Iterator[Finding]:
    """`threads`: of torch; None if it is not there."""
    share = resources.limits.cores
    found = f"{resources.usable_cores} of {resources.machine_cores}"
    if share is not None and share < resources.machine_cores:
        found += f", by a share of {share:g}"
    if threads is not None and threads > resources.usable_cores:
        fix = f"export OMP_NUM_THREADS={resources.usable_cores}"
        yield note("cores", f"{found} can be used, but torch starts {threads} threads, which wait for each other", fix)
    else:
        yield ok("cores", found if threads is None else f"{found}; torch uses {threads} threads")


def check_session(resources: Resources) -> Iterator[Finding]:
    """Open files, the encoding of what is printed, the clock."""
    files = resources.open_files
    if files is not None and files < ENOUGH_OPEN_FILES:
        possible = resources.open_files_possible
        most = ENOUGH_OPEN_FILES if possible is None else min(ENOUGH_OPEN_FILES, possible)
        yield note("open files", f"at most {files}; many workers and shards need {ENOUGH_OPEN_FILES:,}", f"ulimit -n {most}")
    else:
        yield ok("open files", "as many as are wanted" if files is None else f"at most {files:,}")
    try:
        "é 中 🙂".encode(resources.encoding)
        yield ok("encoding", resources.encoding)
    except (UnicodeEncodeError, LookupError):
        yield problem("encoding", f"what is printed is written in {resources.encoding}, which has few letters", "export PYTHONUTF8=1")
    if resources.unix_seconds < FIRST_PLAUSIBLE_SECONDS:
        yield problem(
            "clock",
            "it shows a time before 2025: secure connections fail, and times of files mean nothing",
            "sudo timedatectl set-ntp true",
        )
    else:
        yield ok("clock", "set")


def check_kernel_cache(cache: KernelCache) -> Iterator[Finding]:
    """numba compiles the loops of corpus, tokenizer and generation; kept, that is done once."""
    if cache.folder is None:
        yield problem("numba", f"its loops cannot be used: {cache.trouble}", "export NUMBA_CACHE_DIR=/FOLDER")
    elif not cache.is_writable:
        found = f"compiled loops cannot be kept in {cache.folder}, so every start compiles them"
        yield note("numba", found, "export NUMBA_CACHE_DIR=/FOLDER")
    else:
        yield ok("numba", f"compiled loops are kept in {cache.folder}")


def worst(findings: Sequence[Finding]) -> Finding | None:
    """The first problem: its error gives the exit code."""
    return next((finding for finding in findings if finding.level == "problem"), None)


def counts(findings: Sequence[Finding], seconds: float) -> str:
    """The last line."""
    levels = [finding.level for finding in findings]
    problems, notes = counted(levels.count("problem"), "problems"), counted(levels.count("note"), "notes")
    return f"{problems}, {notes}, {levels.count('ok')} ok; {format_seconds(seconds)}"
