"""What may come over the network besides requests; the number in a name is that of the threat in the table of docs/serving.md."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from starlette.routing import Route

from fledge.core import console
from fledge.core.errors import MachineError
from fledge.core.process import resident_bytes
from fledge.serving.run import bind
from fledge.serving.settings import ServerSettings
from tests.serving.running import NAME, Running, error_of, read_all, running

JSON = {"Content-Type": "application/json"}
SETTINGS = ServerSettings(read_seconds=0.5, idle_seconds=3, connections=40, body_bytes=200_000, cors_origins=("https://friend.example",))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with running(keys=("secret", "other")) as server:
        yield server


def exchange(server: Running, *parts: bytes, seconds_between: float = 0.0) -> bytes:
    """All that comes back over one connection for these bytes; nothing, if it was cut."""
    with server.connect() as connection:
        for part in parts:
            with contextlib.suppress(OSError):
                connection.sendall(part)
            time.sleep(seconds_between)
        return read_all(connection)


def head(method: str = "POST", path: str = "/v1/completions", *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def walk(routes: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """(method, path) of every route; recent versions of FastAPI keep included routers as they are."""
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in route.methods or ())
        else:
            yield from walk(route.original_router.routes)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "secret"},
        {"Authorization": "Bearer Secret"},
        {"Authorization": "Bearer " + "x" * 10_000},
    ],
)
def test_2_no_key_no_answer(guarded: Running, headers: dict[str, str]) -> None:
    answer = guarded.client.get("/v1/models?api_key=secret&key=secret", headers=headers)
    assert error_of(answer) == (401, None, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"] == "Bearer" and "secret" not in answer.text


def test_2_the_scheme_may_be_written_as_one_likes(guarded: Running) -> None:
    for scheme, key in (("Bearer", "secret"), ("bearer", "secret"), ("BEARER", "other")):
        assert guarded.client.get("/v1/models", headers={"Authorization": f"{scheme} {key}"}).status_code == 200


def test_3_every_route_asks_for_the_key(guarded: Running) -> None:
    """But for those that tell whether the server lives; walked over the routes, so a new one is not forgotten."""
    application: Any = guarded.service._server.config.app
    routes = list(walk(application.routes))
    assert len(routes) >= 7
    for method, path in [*routes, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/redoc"), ("POST", "/tokenize"), ("GET", "/")]:
        answer = guarded.client.request(method, path.replace("{name:path}", NAME), json={} if method == "POST" else None)
        assert answer.status_code == (200 if path.startswith("/health/") else 401), (method, path)


def test_3_no_description_of_the_interface_is_served(server: Running) -> None:
    assert [server.client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404] * 3


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "evil.example:80", "[::2]"])
def test_4_another_host_is_not_served(server: Running, host: str) -> None:
    assert error_of(server.client.get("/v1/models", headers={"Host": host})) == (421, None, "invalid_host")


def test_4_hosts_that_are_ours(server: Running) -> None:
    for host in ("localhost", "127.0.0.1:1", "[::1]"):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200
    assert status_of(exchange(server, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")) == 400


def test_5_another_site_cannot_ask(server: Running) -> None:
    body = json.dumps({"model": NAME, "prompt": "x"})
    simple = server.client.post("/v1/completions", content=body, headers={"Content-Type": "text/plain"})
    assert error_of(simple) == (415, None, "unsupported_media_type")
    foreign = server.client.post("/v1/completions", content=body, headers={**JSON, "Origin": "https://evil.example"})
    assert error_of(foreign) == (403, None, "origin_not_allowed")
    ask = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = server.client.options("/v1/completions", headers=ask)
    assert preflight.status_code == 403
    read = server.client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for answer in (simple, foreign, preflight, read) for name in answer.headers)


def test_5_a_site_that_was_named_can(server: Running) -> None:
    origin = {"Origin": "https://friend.example"}
    preflight = server.client.options("/v1/completions", headers={**origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 204 and "authorization" in preflight.headers["Access-Control-Allow-Headers"]
    answer = server.client.post("/v1/completions", json={"model": NAME, "prompt": "x", "max_tokens": 1}, headers=origin)
    for one in (preflight, answer):
        assert one.headers["Access-Control-Allow-Origin"] == "https://friend.example" and one.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in one.headers
    own = server.client.post("/v1/completions", json={"model": NAME, "prompt": "x", "max_tokens": 1}, headers={"Origin": server.url})
    assert own.status_code == 200


def test_6_a_body_that_is_too_large(server: Running) -> None:
    assert error_of(server.client.post("/v1/completions", content=b"x" * 300_000, headers=JSON)) == (413, None, "body_too_large")
    declared = exchange(server, head("POST", "/v1/completions", "Content-Type: application/json", "Content-Length: 999999999"))
    assert status_of(declared) == 413 and b"\r\nconnection: close\r\n" in declared.lower()


def test_6_a_body_without_end_and_one_that_stops(server: Running) -> None:
    chunks = head("POST", "/v1/completions", "Content-Type: application/json", "Transfer-Encoding: chunked")
    endless = exchange(server, chunks, *[b"10000\r\n" + b"x" * 65_536 + b"\r\n"] * 20)
    assert status_of(endless) == 413
    stopping = exchange(server, chunks, b"5\r\nhello\r\n")
    assert status_of(stopping) == 408
    short = exchange(server, head("POST", "/v1/completions", "Content-Type: application/json", "Content-Length: 50"), b"{}")
    assert status_of(short) == 408


def test_6_a_body_in_a_packing(server: Running) -> None:
    answer = server.client.post("/v1/completions", content=b"x", headers={**JSON, "Content-Encoding": "gzip"})
    assert error_of(answer) == (415, None, "unsupported_encoding")


def test_7_large_headers_and_addresses(server: Running) -> None:
    before = resident_bytes()
    assert error_of(server.client.get("/health/live", headers={"X-Long": "x" * 20_000})) == (431, None, "headers_too_large")
    assert error_of(server.client.get("/" + "x" * 10_000)) == (414, None, "uri_too_long")
    many = "".join(f"X-{number}: y\r\n" for number in range(10_000))
    for text in (f"GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n", f"GET /{'x' * 65_536} HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        answer = exchange(server, text.encode())
        assert answer == b"" or status_of(answer) in (400, 414, 431)
    assert resident_bytes() - before < 64 << 20


def test_8_headers_byte_by_byte_are_cut_off(server: Running) -> None:
    assert exchange(server, *[b"G"] * 8, seconds_between=0.1) == b""
    assert exchange(server) == b""  # not a byte


def test_8_an_idle_connection_is_closed(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(head("GET", "/health/live"))
        received = read_all(connection)  # returns when the server closes
    assert status_of(received) == 200


def test_8_too_many_connections(server: Running) -> None:
    with contextlib.ExitStack() as open_ones:
        connections = [open_ones.enter_context(server.connect()) for _ in range(60)]
        refused = [one for one in connections[-15:] if read_all(one).startswith(b"HTTP/1.1 503 ")]
        assert len(refused) == 15
    assert server.client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "value", [b"NaN", b"Infinity", b"1e999", b"1" * 100_000, b'"\\ud800"', b'"\x00"', b'"\xff"', b"[" * 90_000 + b"]" * 90_000]
)
def test_9_json_that_is_none(server: Running, value: bytes) -> None:
    content = b'{"model": "tiny", "prompt": "x", "temperature": ' + value + b"}"
    status, param, code = error_of(server.client.post("/v1/completions", content=content, headers=JSON))
    assert status == 400 and (code == "invalid_json" or param == "temperature")


def test_9_a_field_twice_is_named(server: Running) -> None:
    answer = server.client.post("/v1/completions", content=b'{"model": "tiny", "n": 1, "n": 2}', headers=JSON)
    assert error_of(answer) == (400, "n", "invalid_json")


@pytest.mark.parametrize("given", ["a" * 65, "a b", "x\ty", "ä", "$(id)", ""])
def test_21_a_request_id_of_a_client_is_echoed_only_if_harmless(server: Running, given: str) -> None:
    own = server.client.get("/health/live", headers={"X-Request-Id": given.encode("latin-1")}).headers["X-Request-Id"]  # type: ignore[dict-item]
    assert own != given and len(own) == 32
    assert server.client.get("/health/live", headers={"X-Request-Id": "abc-1_2"}).headers["X-Request-Id"] == "abc-1_2"


def test_21_no_line_of_the_log_can_be_forged(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    console.configure("debug")
    try:
        server.client.get("/x%0d%0aerror:%20forged%1b[31m")
        server.post("/v1/completions", model="a\r\nerror: forged", prompt="x")
        assert status_of(exchange(server, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\rb\r\n\r\n")) == 400
        text = capsys.readouterr().err
    finally:
        console.configure("info")
    assert "/x\\r\\nerror" in text and "\x1b" not in text
    assert not any(line.lstrip().startswith("error") for line in text.splitlines())


@pytest.mark.parametrize("name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "tiny%00", "tiny/../../tiny", "%2e%2e/tiny"])
def test_29_a_name_is_never_a_path(server: Running, name: str) -> None:
    assert error_of(server.client.get(f"/v1/models/{name}"))[0] == 404
    assert error_of(server.post("/v1/completions", model=name, prompt="x")) == (404, "model", "model_not_found")
    assert server.client.get(f"/static/{name}").status_code == 404


def test_33_no_label_comes_from_a_client(server: Running) -> None:
    before = set(server.counters())
    for number in range(8):
        server.client.get(f"/random/{number}")
        server.client.get(f"/v1/models/random-{number}")
        server.post("/v1/completions", model=f"random-{number}", prompt="x")
        server.client.request(f"M{number}", "/v1/models")
    new = set(server.counters()) - before
    assert len(new) < 16 * 6 and not any("random" in name for name in new)
    assert any('endpoint="other"' in name for name in server.counters())


def test_35_requests_that_two_servers_would_cut_apart_differently(server: Running) -> None:
    both = head("POST", "/v1/completions", "Content-Type: application/json", "Content-Length: 4", "Transfer-Encoding: chunked")
    smuggled = exchange(server, both, b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status_of(smuggled) == 400 and smuggled.count(b"HTTP/1.1 ") == 1
    for lines in (
        ("Content-Length: 4", "Content-Length: 5"),
        ("Content-Length: -1",),
        ("Content-Length: 4x",),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: chunked, identity",),
        ("Bad Header: x",),
        (" Folded: x",),
    ):
        answer = exchange(server, head("POST", "/v1/completions", "Content-Type: application/json", *lines))
        assert status_of(answer) in (400, 501), lines
    assert status_of(exchange(server, b"GET / HTTP/1.1\r\n\r\n")) == 400  # no Host
    assert status_of(exchange(server, b"\x16\x03\x01\x02\x00 TLS hello\r\n\r\n")) == 400


def test_35_a_body_whose_pieces_are_none_is_told_so(server: Running) -> None:
    chunks = head("POST", "/v1/completions", "Content-Type: application/json", "Transfer-Encoding: chunked")
    for body in (b"zz\r\nfoo\r\n0\r\n\r\n", b"2\r\n{}\r\nzz\r\n"):
        answer = exchange(server, chunks, body)
        assert status_of(answer) == 400 and b"invalid_http" in answer and answer.count(b"HTTP/1.1 ") == 1


def test_35_methods_pipelining_and_an_old_version(server: Running) -> None:
    assert [server.client.request(method, "/v1/models").status_code for method in ("PUT", "DELETE", "HEAD", "BREW")] == [405] * 4
    assert server.client.options("/v1/models").headers["Allow"] == "GET, POST, OPTIONS"
    assert status_of(exchange(server, b"GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n")) == 200
    both = exchange(server, head("GET", "/health/live") + head("GET", "/v1/models", "Connection: close"))
    assert both.count(b"HTTP/1.1 200") == 2


def test_36_forms_are_not_read(server: Running) -> None:
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "application/xml"):
        answer = server.client.post("/v1/completions", content=b"a=1&" * 1_000, headers={"Content-Type": kind})
        assert error_of(answer) == (415, None, "unsupported_media_type")
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    body = json.dumps({"model": NAME, "prompt": "x", "max_tokens": 1})
    assert server.client.post("/v1/completions", content=body, headers=charset).status_code == 200


def test_38_a_port_in_use_is_told(server: Running) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(MachineError, match=f"port {port} of 127.0.0.1 is in use") as raised:
        bind(ServerSettings(port=port)).listen()
    assert raised.value.exit_code == 5 and "--port" in raised.value.remedy
    with pytest.raises(MachineError, match="cannot listen"):
        bind(ServerSettings(host="192.0.2.1", port=0))


def test_every_answer_has_its_id_and_is_not_guessed_at(server: Running) -> None:
    answers = [server.client.get(path) for path in ("/health/live", "/nothing", "/v1/models")] + [server.complete(max_tokens=1)]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == len(answers)
    assert {answer.headers["X-Content-Type-Options"] for answer in answers} == {"nosniff"}


def test_a_server_that_was_attacked_still_answers(server: Running) -> None:
    assert server.golden() == server.golden() != ""
    assert threading.active_count() < 50
    assert server.busy_choices() == 0


def test_settings_of_these_tests_are_the_real_ones_but_smaller() -> None:
    default = ServerSettings()
    assert (default.read_seconds, default.idle_seconds, default.connections, default.body_bytes) == (10, 30, 256, 2 << 20)
    assert replace(SETTINGS, port=1).header_bytes == default.header_bytes == 16 << 10


def test_a_body_within_the_limit_is_read_whole() -> None:
    with running() as server:
        answer = server.client.post("/v1/completions", content=b" " * 2_000_000 + b"{}", headers=JSON)
        assert error_of(answer) == (400, "model", None)


def test_1_the_command_line_refuses_an_open_address_before_it_loads_a_model() -> None:
    from fledge.core.errors import ConfigError
    from fledge.serving.application import create_application
    from fledge.serving.keys import ApiKeys
    from fledge.serving.run import Service

    settings = ServerSettings(host="0.0.0.0", port=0)
    with pytest.raises(ConfigError):
        Service(create_application(settings, keys=ApiKeys()), settings)
