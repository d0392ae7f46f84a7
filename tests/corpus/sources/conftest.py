from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from fledge.corpus.sources import transport

from .servers import Hub, Site, impatient_site


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with impatient_site(monkeypatch, tries=4) as site:
        yield site


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object store that is this process's memory, at memory://."""
    monkeypatch.setattr(transport, "STORE_SCHEMES", transport.STORE_SCHEMES | {"memory"})
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stub of the Hugging Face hub, which the hub's own library takes for the hub."""
    import huggingface_hub
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", site.url)
    template = f"{site.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield Hub(site)
    huggingface_hub.close_session()
