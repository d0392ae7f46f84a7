from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.corpus.sources import attempts, transport

from .hub_stub import TOKEN, HubStub, serve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    """A stub that the hub's own library takes for the hub, and little patience with it, ours and the library's."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.utils._http

    with serve() as stub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", stub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{stub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setattr(attempts, "PATIENCE", attempts.Patience(attempts=3, first_wait_seconds=0.001, silence_seconds=5))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        transport._client.cache_clear()
        yield stub
        transport.client().close()
        transport._client.cache_clear()
        huggingface_hub.close_session()
