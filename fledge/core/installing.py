"""How a package that is missing comes into this Python: an extra's name -> [installing] -> the command, in messages.

What an extra holds is read from the metadata of the installed Fledge, whose name no registry needs to know.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import shlex
import sys

_OF_EXTRA = re.compile(r"""(?P<requirement>[^;]+?)\s*;\s*extra == ['"](?P<extra>\w+)['"]""")


def installer(python: str, has_pip: bool) -> str:
    """What installs into a Python; one that uv made has no pip."""
    return f"{python} -m pip install" if has_pip else f"uv pip install --python {python}"


def install_hint(extra: str) -> str:
    """The command that installs what an extra of Fledge names; where Fledge only lies there, from its checkout."""
    command = installer(sys.executable, importlib.util.find_spec("pip") is not None)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = filter(None, map(_OF_EXTRA.fullmatch, importlib.metadata.requires("fledge") or []))
        packages = [shlex.quote(one["requirement"]) for one in found if one["extra"] == extra]
        if packages:
            return f"{command} {' '.join(packages)}"
    return f"{command} {shlex.quote(f'.[{extra}]')}, in the checkout of Fledge"
