"""`fledge doctor`: what Fledge finds here, and what to type where something is amiss. Nothing is downloaded, and nothing stays changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fledge.core import console
from fledge.core.errors import FledgeError
from fledge.core.wording import counted
from fledge.stages.run import Run
from fledge.verbs.doctor import checks, facts
from fledge.verbs.doctor.compiler import Compiler, CompilerTrial
from fledge.verbs.doctor.findings import Finding, problem, refused

_STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


@dataclass(frozen=True)
class Asked:
    """What the command line says besides the recipe."""

    online: bool = False
    quick: bool = False
    """Nothing is tried: no compiler, no products."""
    as_json: bool = False


def doctor(prepared: Callable[[], Run] | None, asked: Asked) -> None:
    """Print the findings about the machine, and about the run of a recipe if one is given, each as soon as it is known.

    `prepared` reads the recipe; what it raises is a finding too. Raises an error of the first problem's class if there is a problem.
    """
    started, findings = time.monotonic(), list[Finding]()
    for finding in _all(prepared, asked):
        findings.append(finding)
        if not asked.as_json:
            _say(finding)
    if asked.as_json:
        console.say(json.dumps([_plain(finding) for finding in findings], indent=2))
    else:
        console.say(checks.counts(findings, time.monotonic() - started))
    worst = checks.worst(findings)
    if worst is not None:
        count = sum(finding.level == "problem" for finding in findings)
        raise worst.error(f"{counted(count, 'problems')} found, the first with {worst.subject}", "type what stands beside them")


def _all(prepared: Callable[[], Run] | None, asked: Asked) -> Iterator[Finding]:
    run: Run | None = None
    unreadable: Finding | None = None
    if prepared is not None:
        try:
            run = prepared()
        except FledgeError as error:
            unreadable = refused("recipe", error)
    yield from about_machine(run, asked)
    if asked.online:
        from fledge.verbs.doctor import online

        yield from online.check_hub(online.look_at_hub())
    if unreadable is not None:
        yield unreadable
    if run is not None:
        yield from about_run(run, asked.online)


def about_machine(run: Run | None, asked: Asked) -> Iterator[Finding]:
    """A trial of the compiler is begun first and asked for last, so that it runs meanwhile."""
    software = facts.look_at_software()
    yield from checks.check_python(software)
    yield from checks.check_install(software)
    cache = run.recipe.corpus.cache_folder if run and run.recipe.corpus else None
    for place in facts.look_at_places(run.folder if run else None, cache):
        yield from checks.check_place(place)
    yield from checks.check_kernel_cache(facts.look_at_kernel_cache())
    resources = facts.look_at_resources()
    yield from checks.check_memory(resources)
    yield from checks.check_session(resources)
    try:
        import torch
    except Exception as error:  # a torch of another machine fails as its libraries do
        yield from checks.check_cores(resources, None)
        yield problem("torch", f"it cannot be loaded: {error}", f"{software.install} --force-reinstall 'torch>=2.10'")
        return
    yield from checks.check_cores(resources, torch.get_num_threads())
    yield from _about_torch(software, asked.quick)
    yield from checks.check_extras(software)


def _about_torch(software: facts.Software, quick: bool) -> Iterator[Finding]:
    from fledge.verbs.doctor import device_checks as devices
    from fledge.verbs.doctor.accelerator import look_at_accelerator, main_device

    trial = None if quick else CompilerTrial(main_device())
    try:
        found = look_at_accelerator(tries_products=not quick)
        yield from devices.check_torch(found, software)
        yield from devices.check_gpus(found)
        yield from devices.check_precision(found, software)
        yield from devices.check_float8(found, software)
        yield from devices.check_attention(found)
        yield from devices.check_backends(found)
        yield from devices.check_compiler(trial.outcome() if trial else Compiler("skipped"), found.device)
    finally:
        if trial is not None:
            trial.close()


def about_run(run: Run, online: bool) -> Iterator[Finding]:
    """Whether this run can begin, or go on."""
    from fledge.verbs.doctor import recipe_checks as recipes

    yield from recipes.check_sources(run, online)
    yield from recipes.check_inputs(run)
    yield from recipes.check_tokenizer(run, online)
    yield from recipes.check_sinks(run)
    yield from recipes.check_precision(run)
    yield from recipes.check_plan(run)
    yield from recipes.check_stages(run)


def _say(finding: Finding) -> None:
    console.say_styled([(f"{finding.level:<8} ", _STYLES[finding.level]), (f"{finding.subject}: {finding.found}", "")])
    if finding.fix:
        console.say_styled([(f"{'':<8} fix: ", "green"), (finding.fix, "")])


def _plain(finding: Finding) -> dict[str, object]:
    code = {"exit_code": finding.error.exit_code} if finding.level == "problem" else {}
    return {"subject": finding.subject, "level": finding.level, "found": finding.found, "fix": finding.fix, **code}
