"""Who may ask, by which names, and from whose pages."""

from __future__ import annotations

import pytest

from fledge.core.errors import ConfigError
from fledge.serving.hosts import host_name, is_allowed_origin, is_own_origin, served_hosts
from fledge.serving.keys import ApiKeys
from fledge.serving.settings import ServerSettings, require_safe_address


@pytest.mark.parametrize(
    ("header", "holder"),
    [
        ("Bearer one", "key 0"),
        ("bearer two", "key 1"),
        ("BEARER  two ", "key 1"),
        ("Bearer One", None),
        ("Bearer ", None),
        ("Bearer", None),
        ("one", None),
        ("Basic one", None),
        ("Bearer one two", None),
        ("Bearer " + "x" * 100_000, None),
        ("Bearer one\x00", None),
        ("Bearer \udcff", None),
        ("", None),
        (None, None),
    ],
)
def test_keys_are_exact_and_their_scheme_is_not(header: str | None, holder: str | None) -> None:
    assert ApiKeys(["one", "two"]).holder(header) == holder


def test_keys_come_from_the_environment_and_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEDGE_API_KEY", " one, two ,,")
    keys = ApiKeys.from_environment()
    assert keys.holder("Bearer two") == "key 1" and keys.holder("Bearer ") is None
    assert "one" not in repr(vars(keys))
    monkeypatch.delenv("FLEDGE_API_KEY")
    assert not ApiKeys.from_environment()


@pytest.mark.parametrize("key", ["schlüssel", "one,k\u00e9y", "\udcff", "o\tne"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEDGE_API_KEY", key)
    with pytest.raises(ConfigError, match="FLEDGE_API_KEY holds a character that no header can carry") as refused:
        ApiKeys.from_environment()
    assert key not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_1_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="FLEDGE_API_KEY"):
        require_safe_address(ServerSettings(host=host), has_keys=False)
    require_safe_address(ServerSettings(host=host), has_keys=True)
    require_safe_address(ServerSettings(host=host, insecure=True), has_keys=False)
    for own in ("127.0.0.1", "127.0.0.2", "::1", "LocalHost"):
        require_safe_address(ServerSettings(host=own), has_keys=False)


def test_4_names_in_the_host_header() -> None:
    local = served_hosts(ServerSettings(allowed_hosts=("Model.example",)), has_keys=False)
    assert local is not None
    names = ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:80", "model.example:443")
    assert all(host_name(name) in local for name in names)
    assert not any(host_name(name) in local for name in ("evil.example", "127.0.0.1.evil.example", "", "[::2]", "localhost."))
    assert served_hosts(ServerSettings(host="0.0.0.0"), has_keys=True) is None
    open_to_all = served_hosts(ServerSettings(host="0.0.0.0", insecure=True), has_keys=False)
    assert open_to_all is not None and "evil.example" not in open_to_all and "localhost" in open_to_all
    assert served_hosts(ServerSettings(host="0.0.0.0", allowed_hosts=("a",)), has_keys=True) is not None
    assert served_hosts(ServerSettings(allowed_hosts=("*",)), has_keys=False) is None


def test_4_a_name_is_given_with_or_without_a_port() -> None:
    given = ServerSettings(host="::1", allowed_hosts=("Example.org:8000", "[::2]:80", "::3"))
    hosts = served_hosts(given, has_keys=False)
    assert hosts is not None and {host_name(name) for name in ("example.org:9", "[::1]:80", "[::2]", "[::3]:1")} <= hosts
    with pytest.raises(ValueError, match="allowed_hosts must hold names without a scheme"):
        ServerSettings(allowed_hosts=("https://example.org",))


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/page", "https://", "//example.org", "localhost:3000", ""])
def test_5_what_no_browser_sends_as_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins must hold origins like"):
        ServerSettings(cors_origins=(origin,))
    ServerSettings(cors_origins=("*", "null", "https://example.org/", "http://[::1]:3000"))


def test_5_origins() -> None:
    assert is_own_origin("http://127.0.0.1:8000", "127.0.0.1:8000") and is_own_origin("https://a.example", "A.example")
    assert not any(
        is_own_origin(origin, "127.0.0.1:8000") for origin in ("http://127.0.0.1:9000", "null", "http://[", "http://evil.example")
    )
    assert not is_own_origin("null", "")
    assert is_allowed_origin("https://a.example", ["https://A.example/"]) and is_allowed_origin("null", ["*"])
    assert not is_allowed_origin("https://a.example.evil", ["https://a.example"])


@pytest.mark.parametrize(
    "wrong", [{"host": ""}, {"port": 70_000}, {"body_bytes": 0}, {"request_seconds": -1.0}, {"choices_per_request": 33}]
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServerSettings(**wrong)  # type: ignore[arg-type]
