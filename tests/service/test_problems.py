"""Whatever is refused, by whichever part, is refused with a problem body (RFC 9457)."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from http_worlds import running, wait_until

from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.limits import Limits
from stages.serve.http.problems import MEDIA_TYPE
from stages.serve.http.wire import HEAD


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    said = response.json()
    assert said["status"] == status and said["type"] == f"urn:quarry:problem:{code}"
    assert said["title"] and said["detail"]


def raw(url: str, data: bytes) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of what comes back until the server closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as s:
        s.sendall(data)
        said = b""
        while part := s.recv(65_536):
            said += part
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body)


def hold_index(service) -> threading.Event:
    """Searches of the index wait until the event is set."""
    retriever = service.catalogue.shelf(service.catalogue.entries["find"]).retriever
    search, may = retriever.search, threading.Event()
    retriever.search = lambda queries, k: may.wait(60) and search(queries, k)
    return may


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not-found"), ("GET", "/page/none.js", 404, "not-found"),
        ("GET", "/search", 405, "method"), ("GET", "/answer", 405, "method"),
        ("DELETE", "/healthz", 405, "method"), ("PUT", "/search", 405, "method"),
        ("POST", "/search", 422, "values"), ("POST", "/answer", 422, "values"),
    ],
)  # fmt: skip
def test_routes_and_methods_that_are_not_there_and_bodies_that_are_missing(
    service, method, path, status, code
):
    said = service.client.request(method, path)
    assert_problem(said, status, code)
    assert ("allow" in said.headers) == (status == 405)


def test_one_search_too_many_is_429_and_one_that_takes_too_long_504(project):
    limits = Limits(searches=1, search_seconds=30)
    with (
        running(Catalogue(read_entries(["find"])), limits) as service,
        ThreadPoolExecutor() as pool,
    ):
        may = hold_index(service)
        first = pool.submit(service.post, "/search", query="Lyon")
        wait_until(lambda: service.metric("quarry_active", what="searches") == 1, "it is asked")
        busy = service.post("/search", query="Lyon")
        assert_problem(busy, 429, "busy")
        assert busy.headers["retry-after"] == "1"
        may.set()
        assert first.result(60).status_code == 200
    with running(Catalogue(read_entries(["find"])), Limits(search_seconds=0.01)) as service:
        may = hold_index(service)
        assert_problem(service.post("/search", query="Lyon"), 504, "timeout")
        may.set()


def test_one_connection_too_many_is_503_is_closed_and_gives_its_place_to_the_next(project):
    with running(Catalogue(read_entries(["find"])), Limits(connections=2)) as service:
        assert service.post("/search", query="Lyon").status_code == 200
        with socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1]))):
            wait_until(lambda: len(service.server.server_state.connections) == 2, "it is open")
            status, headers, said = raw(
                service.url, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
            )
            assert (status, headers["content-type"]) == (503, MEDIA_TYPE)
            assert headers["connection"] == "close" and headers["retry-after"] == "1"
            assert said["type"] == "urn:quarry:problem:crowded" and said["detail"]
            assert service.post("/search", query="Lyon").status_code == 200, "who is in goes on"
        wait_until(lambda: len(service.server.server_state.connections) == 1, "it is closed")
        with httpx.Client(base_url=service.url) as other:
            assert other.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET /healthz HTTP/9.9\r\n\r\n",
        b"POST /search HTTP/1.1\r\nhost: x\r\ncontent-length: a\r\n\r\n",
        (b"GET /healthz HTTP/1.1\r\nx: " + b"x" * HEAD)[: HEAD + 1],  # a head that never ends
        (b"GET /" + b"y" * HEAD)[: HEAD + 1],
    ],
    ids=["words", "tls", "version", "length", "header", "line"],
)  # fmt: skip
def test_what_is_no_http_or_has_no_end_is_400(service, data):
    status, headers, said = raw(service.url, data)
    assert (status, headers["content-type"]) == (400, MEDIA_TYPE)
    assert said["type"] == "urn:quarry:problem:not-http" and said["status"] == 400
    assert service.client.get("/healthz").status_code == 200


def test_heads_are_counted_one_by_one_and_bodies_not_at_all(service):
    big = {"query": "Lyon", "index": "words", "k": 1}
    for _ in range(20):  # 20 heads of 8,000 bytes and bodies of 40,000 on one connection
        body = json.dumps(big) + " " * 40_000
        headers = {"content-type": "application/json", "x-long": "x" * 8_000}
        said = service.client.post("/search", content=body, headers=headers)
        assert said.status_code == 200


def test_a_body_that_does_not_come_is_408(project):
    with running(Catalogue(read_entries(["find"])), Limits(body_seconds=0.05)) as service:
        head = b"POST /search HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        status, headers, said = raw(service.url, head + b"content-length: 9\r\n\r\n{")
        assert (status, headers["content-type"], said["status"]) == (408, MEDIA_TYPE, 408)


def test_what_nobody_foresaw_is_500_in_both_ways_that_a_search_can_go(service, monkeypatch, caplog):
    shelf = service.catalogue.shelf(service.catalogue.entries["find"])
    monkeypatch.setattr(shelf.corpus, "write", lambda hits: 1 / 0)
    assert_problem(service.post("/search", query="Lyon"), 500, "internal")
    body, header = b'{"query": "Lyon"}', {"content-type": "application/json; charset=utf-8"}
    assert_problem(service.client.post("/search", content=body, headers=header), 500, "internal")
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    with httpx.Client(base_url=service.url) as other:  # such a connection is closed
        said = other.post("/search", content=body, headers=header)
        assert said.json()["hits"] == other.post("/search", json={"query": "Lyon"}).json()["hits"]
