"""Odd requests to the page: malformed, slow, endless, and many at once."""

from __future__ import annotations

import http.client
import socket
import threading

import pytest

from tests.page.serving import Served

pytest.importorskip("starlette")

from starlette.routing import Route

from loramerge.page.routes import routes

pytestmark = pytest.mark.xdist_group("page")
POSTS = sorted(
    one.path for one in routes() if isinstance(one, Route) and "POST" in (one.methods or ())
)


BAD_BODIES = {
    "not JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b"\xff\xfe{}",
    "deep lists": b'{"values": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep mappings": b'{"values": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
    "rather deep": b'{"verb": "mix", "values": ' + b'{"a":' * 60 + b"1" + b"}" * 60 + b"}",
    "a long number": b'{"verb": "mix", "values": {"rank": ' + b"9" * 10_000 + b"}}",
    "infinity": b'{"verb": "resize", "values": {"adapter": "zuzu", "rank": Infinity}}',
    "half a pair": b'{"verb": "\\ud800", "path": "\\ud800", "text": "\\ud800"}',
    "too large": b'{"a": "' + b"x" * (5 << 20) + b'"}',
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_malformed_body_is_an_error_of_the_one_who_asks(name: str, page: Served) -> None:
    for path in POSTS:
        if path != "/api/upload":
            found = page.ask("POST", path.replace("{id}", "0"), raw=BAD_BODIES[name])
            assert 400 <= found.status < 500, (path, found)
            assert set(found.body) == {"error"}, path


def test_malformed_requests_and_slow_clients_do_not_hold_others_up(page: Served) -> None:
    host, port = page.address.split(":")
    assert page.raw("GET /\x00 HTTP/1.1\r\n\r\n") == b"400"
    assert page.raw("nonsense\r\n\r\n") == b"400"
    slow = []
    for start in ("GET /api/about HT", "POST /api/action HTTP/1.1\r\nHost: x\r\nContent-Le", ""):
        one = socket.create_connection((host, int(port)))
        one.sendall(start.encode())
        slow.append(one)
    assert page.get("/api/about").status == 200
    for one in slow:
        one.close()


def test_a_connection_without_a_request_is_closed_and_a_stream_is_not(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramerge.page.serve.SILENCE", 0.5)
    host, port = page.address.split(":")
    stream = http.client.HTTPConnection(page.address, timeout=60)
    stream.request("GET", f"/api/events?token={page.token}")
    found = stream.getresponse()
    with socket.create_connection((host, int(port)), timeout=60) as half:
        half.sendall(b"GET /api/about HTTP/1.1\r\nHost: ")
        with socket.create_connection((host, int(port)), timeout=60) as silent:
            assert silent.recv(1) == b"" and half.recv(1) == b""  # the server has closed them
    page.app.state.page.tell("library", {})
    assert found.readline() == b": here\n" and found.readline() == b"\n"
    assert found.readline() == b"event: library\n"
    stream.close()


def test_two_hundred_requests_at_once_are_all_answered(page: Served) -> None:
    paths = ("/api/about", "/api/verbs", "/api/files", "/api/jobs")
    found: list[int] = []

    def ask(number: int) -> None:
        found.append(page.get(paths[number % len(paths)]).status)

    before = threading.active_count()
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(200)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [200] * 200
    assert threading.active_count() <= before + 50  # those of the server stay few


def test_open_event_streams_are_let_go_and_do_not_pile_up(page: Served) -> None:
    open_ones = []
    for _ in range(20):
        one = http.client.HTTPConnection(page.address, timeout=60)
        one.request("GET", f"/api/events?token={page.token}")
        assert one.getresponse().status == 200
        open_ones.append(one)
    shared = page.app.state.page
    assert len(shared.listeners) == 20
    for number in range(1500):  # more than a page may be behind; nobody reads
        shared.tell("library", number)
    assert max((one.qsize() for one in shared.listeners), default=0) <= 1000
    for one in open_ones:
        one.close()


def test_endless_lists_are_refused(page: Served) -> None:
    """Each name is looked for in the library, which takes a while."""
    values = {"adapters": ["zuzu"] * 200_000}
    found = page.post("/api/action", {"verb": "mix", "values": values})
    assert found.status == 400 and "more values than" in found.body["error"]["text"]
