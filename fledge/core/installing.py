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


def installer() -> str:
    """What installs into this Python; one that uv made has no pip."""
    has_pip = importlib.util.find_spec("pip") is not None
    return f"{sys.executable} -m pip install" if has_pip else f"uv pip install --python {sys.executable}"


def install_hint(extra: str) -> str:
    """The command that installs what an extra of Fledge names; where Fledge only lies there, from its checkout."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = filter(None, map(_OF_EXTRA.fullmatch, importlib.metadata.requires("fledge") or []))
        packages = [shlex.quote(one["requirement"]) for one in found if one["extra"] == extra]
        if packages:
            return f"{installer()} {' '.join(packages)}"
    return f"{installer()} {shlex.quote(f'.[{extra}]')}, in the checkout of Fledge"
