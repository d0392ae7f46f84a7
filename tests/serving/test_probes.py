"""Whoever supervises a server asks for its health by an address that the server does not know; docs/cloud.md."""

from __future__ import annotations

import pytest

from fledge.serving.settings import ServerSettings
from tests.serving.running import running

PROBE = {"Host": "10.1.2.3:8000"}
"""As the kubelet sends it: the address of the pod."""


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
@pytest.mark.parametrize(("allowed_hosts", "status"), [((), 200), (("fledge-serve",), 421)])
def test_a_probe_reaches_a_server_with_a_key_unless_names_are_listed(path: str, allowed_hosts: tuple[str, ...], status: int) -> None:
    with running(ServerSettings(host="0.0.0.0", allowed_hosts=allowed_hosts), keys=("secret",)) as server:
        assert server.client.get(path, headers=PROBE).status_code == status
