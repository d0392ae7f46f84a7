"""The command that a message names for a missing package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

import pytest

from fledge.core.installing import install_hint

REQUIRED = ["numpy>=2", "torchao>=0.17; extra == 'fp8'", 'gguf>=0.17 ; extra == "gguf"', "lm_eval; extra == 'eval'"]


def test_what_the_metadata_says_is_installed_into_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRED)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert install_hint("fp8") == f"{sys.executable} -m pip install 'torchao>=0.17'"
    assert install_hint("gguf") == f"{sys.executable} -m pip install 'gguf>=0.17'"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install_hint("eval") == f"uv pip install --python {sys.executable} lm_eval"


def test_a_fledge_that_is_not_installed_is_installed_from_its_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    assert install_hint("s3").endswith(" '.[s3]', in the checkout of Fledge")
