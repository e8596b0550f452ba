"""The routes over a real port: what they answer, what they refuse, what they survive."""

import shutil
import socket
import threading
from pathlib import Path

import httpx
import pytest
from http_worlds import TEXTS, read_events, running, wait_until, write_corpus
from rooms import run_room

from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.limits import Limits


def assert_problem(response: httpx.Response, status: int, code: str) -> dict:
    """A body as RFC 9457 wants it; the body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    said = response.json()
    assert said["status"] == status and said["type"].endswith(f":{code}")
    assert said["title"] and said["detail"]
    return said


def ask(service, **body):
    return service.post("/answer", question="Where is Lyon?", stream=False, **body)


# -- what they answer -------------------------------------------------------------------------


def test_search_gives_passages_with_their_text_and_where_they_come_from(service):
    said = service.post("/search", query="Lyon", k=2).json()
    first = said["hits"][0]
    assert (first["docid"], first["text"], first["parent"]) == ("d0#0", TEXTS[0], "d0")
    assert (first["locator"], first["title"]) == ("towns.txt:d0", "t0")
    assert first["score"] > 0 and said["timings"]["total_ms"] >= said["timings"]["search_ms"] > 0
    assert service.post("/search", query="Lyon", index="words").json()["hits"] == said["hits"]
    assert service.post("/search", query="zzz").json()["hits"] == [], "no hit is an ordinary case"


def test_an_answer_is_what_the_batch_engine_answers(service):
    said = ask(service, entry="read", max_tokens=200).json()
    write_question("Where is Lyon?", max_tokens=200)
    run_room("serve", "read")
    from stages.tables import read_table

    (row,) = read_table(Path("data/runs/c/read"), "answers").to_pylist()
    assert said["answer"] == row["answer"] != ""
    assert said["docids"] == row["docids"]
    for name in ("rounds", "llm_calls", "searches", "tokens_in", "tokens_out"):
        assert said["counts"][name] == row[name]


def write_question(text: str, **values) -> None:
    import yaml

    from stages.tables import table, write_table

    row = dict(qid="q", text=text, split="test", answers=["x"], options=[], meta="{}")
    write_table(table("queries", [row]), Path("data/ingest/c"), "queries")
    said = yaml.safe_load(Path("params.yaml").read_text())
    said["serve"]["read"] |= values
    Path("params.yaml").write_text(yaml.safe_dump(said))


def test_the_streamed_answer_is_the_whole_one_in_pieces(service):
    whole = ask(service, entry="read", max_tokens=100).json()
    body = {"question": "Where is Lyon?", "entry": "read", "max_tokens": 100}
    with service.client.stream("POST", "/answer", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = list(read_events(response.iter_lines()))
    names = [name for name, _ in told]
    assert names[0] == "start" and names[-2:] == ["timings", "done"]
    assert "".join(e["text"] for name, e in told if name == "token").strip() in whole["answer"]
    assert told[-1][1]["answer"] == whole["answer"]
    assert [e["hits"] for name, e in told if name == "evidence"] == [
        e["hits"] for e in whole["evidence"]
    ]


def test_options_are_chosen_from_and_closed_books_search_nothing(service):
    said = ask(service, entry="read", options=["France", "Italy"]).json()
    assert said["answer"] in {"France", "Italy"}
    assert [s["kind"] for s in said["steps"]][-1] == "Choice"
    closed = ask(service, entry="closed").json()
    assert closed["counts"]["searches"] == 0 and closed["evidence"] == []


def test_ready_catalogue_and_metrics_tell_what_is_open(service):
    assert service.client.get("/healthz").json() == {"status": "ok"}
    ready = service.client.get("/readyz")
    assert ready.status_code == 200 and "not-built" in ready.json()["not_open"]["gone"]
    rows = {r["entry"]: r for r in service.client.get("/catalogue").json()}
    assert [n for n, r in rows.items() if r["answers"]] == ["read", "closed"]
    assert not rows["gone"]["open"] and not rows["read"]["lookahead"]
    service.post("/search", query="Lyon")
    assert service.metric("quarry_requests_total", route="/search", status="200") == 1
    assert service.metric("quarry_entries") == 3


def test_the_reference_lists_every_route_and_loads_nothing_from_elsewhere(service):
    spec = service.client.get("/openapi.json").json()
    assert spec["components"]["schemas"]["Search"]["properties"]["query"]["maxLength"] == 4000
    page = service.client.get("/docs")
    for path in spec["paths"]:
        assert path in page.text
    assert "http://" not in page.text and "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


# -- what they refuse -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/search", {"query": ""}, 422, "values"),
        ("/search", {"query": "x" * 4001}, 422, "values"),
        ("/search", {"query": "x", "k": 0}, 422, "values"),
        ("/search", {"query": "x", "k": 1001}, 422, "values"),
        ("/search", {"query": "x", "k": "7"}, 422, "values"),
        ("/search", {"query": "x", "path": "/etc"}, 422, "values"),
        ("/search", {"query": "x", "index": "../index/words"}, 422, "values"),
        ("/search", {"query": "x", "index": "lm"}, 404, "unknown-index"),
        ("/search", {"query": "x", "index": "not-built"}, 503, "unavailable"),
        ("/answer", {"question": "x", "entry": "words"}, 404, "unknown-entry"),
        ("/answer", {"question": "x", "entry": "find"}, 422, "no-answers"),
        ("/answer", {"question": "x", "max_tokens": 513}, 422, "values"),
        ("/answer", {"question": "x", "options": ["y"] * 33}, 422, "values"),
        ("/answer", {"question": "x", "model": "lm"}, 422, "values"),
        ("/nothing", {}, 404, "not-found"),
        ("/healthz", {}, 405, "method"),
    ],
)
def test_what_is_out_of_its_limits_or_not_in_the_catalogue_is_refused(
    service, path, body, status, code
):
    assert_problem(service.post(path, **body), status, code)


def test_a_body_that_is_no_json_or_too_large_is_refused(service):
    headers = {"content-type": "application/json"}
    send = service.client.post
    assert_problem(send("/search", content=b'{"query": ', headers=headers), 400, "not-json")
    big = b'{"query": "' + b"x" * 70_000 + b'"}'
    assert_problem(send("/search", content=big, headers=headers), 413, "too-large")
    assert_problem(send("/search", content=iter([big]), headers=headers), 413, "too-large")
    assert service.post("/search", query="Lyon").status_code == 200


def test_a_question_that_is_too_long_for_the_model_is_the_askers_problem(service):
    said = service.post("/answer", question="x" * 2500, entry="read", stream=False)
    assert "context" in assert_problem(said, 422, "question-failed")["detail"]


def test_without_a_key_only_loopback_names_are_answered(service):
    said = service.client.get("/catalogue", headers={"host": "rebound.example"})
    assert_problem(said, 403, "host")


def test_with_a_key_every_route_but_the_page_and_the_probes_wants_it(project, caplog):
    key = "k3y-of-the-test"
    with running(Catalogue(read_entries(["find"])), key=key) as service:
        assert_problem(service.post("/search", query="Lyon"), 401, "key")
        for wrong in ({"x-api-key": "k3y"}, {"authorization": "Bearer k3y-of-the-tesT"}):
            said = service.client.post("/search", json={"query": "Lyon"}, headers=wrong)
            assert_problem(said, 401, "key")
            assert said.headers["www-authenticate"] == "Bearer"
        for right in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
            said = service.client.post("/search", json={"query": "Lyon"}, headers=right)
            assert said.status_code == 200
        for path in ("/", "/page/app.js", "/healthz", "/readyz"):
            assert service.client.get(path).status_code == 200
        for path in ("/metrics", "/docs", "/openapi.json", "/catalogue"):
            assert service.client.get(path).status_code == 401
    assert key not in caplog.text


def test_every_name_of_loopback_is_one_and_no_other(service):
    for host in ("LocalHost:80", "127.0.0.2", "[::1]:8000", "127.255.255.254:1"):
        assert service.client.get("/catalogue", headers={"host": host}).status_code == 200, host
    for host in ("128.0.0.1", "localhost.example", "[::2]", "127.0.0.1.example:80", ""):
        assert_problem(service.client.get("/catalogue", headers={"host": host}), 403, "host")


@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
def test_a_key_that_is_not_ascii_is_compared_as_bytes(project, coding):
    key = "cl\u00e9-\u00e0"  # its last byte in UTF-8 is a space in Latin-1
    with running(Catalogue(read_entries(["find"])), key=key) as service:
        for given, status in ((key, 200), ("cl\u00e9-\u00e9", 401)):
            headers = {"x-api-key": given.encode(coding)}
            assert service.client.get("/catalogue", headers=headers).status_code == status


def test_why_something_is_not_open_is_told_to_those_with_the_key(project):
    with running(Catalogue(read_entries(["find", "gone"])), key="k") as service:
        assert service.client.get("/readyz").json() == {"ready": True}
        said = service.client.get("/readyz", headers={"x-api-key": "k"}).json()
        assert "not-built" in said["not_open"]["gone"]


# -- many at once, and clients that leave -----------------------------------------------------


def begin(service, client=None, tokens=512):
    """A streamed answer whose first token has come: the response and its events."""
    body = {"question": "Where is Lyon?", "entry": "read", "max_tokens": tokens}
    context = (client or service.client).stream("POST", "/answer", json=body)
    response = context.__enter__()
    events = read_events(response.iter_lines())
    told = []
    for event in events:
        told.append(event)
        if event[0] == "token":
            return context, events
    pytest.fail(f"no token came: {told}")


def rows(service):
    return service.metric("quarry_generator_rows", model="lm")


def test_a_second_clients_first_token_comes_before_the_firsts_last(service):
    context, events = begin(service)
    with httpx.Client(base_url=service.url, timeout=60) as other:
        second, rest = begin(service, other, tokens=20)
        assert [name for name, _ in rest][-1] == "done"
        second.__exit__(None, None, None)
        left = [name for name, _ in events]
    assert left.count("token") > 50 and left[-1] == "done"
    context.__exit__(None, None, None)


def test_a_client_that_leaves_in_the_middle_frees_its_row(service, monkeypatch):
    desk = service.catalogue.desks["lm"]
    (lane,), step, left = desk.lanes, desk.generator._model.step, threading.Event()

    def until_it_has_left(*args):
        if desk.steps > 20:  # its text would have 129 tokens
            assert left.wait(60)
        return step(*args)

    monkeypatch.setattr(desk.generator._model, "step", until_it_has_left)
    with httpx.Client(base_url=service.url, timeout=60) as other:
        stream = begin(service, other)  # kept: it ends with its last reference
        assert rows(service) == 1
        (call,) = lane.running.values()
    del stream
    wait_until(lambda: call.given_up, "it is noticed")
    left.set()
    wait_until(lambda: rows(service) == 0, "the row is free")
    wait_until(lambda: service.metric("quarry_active", what="answers") == 0, "the place is free")
    assert service.metric("quarry_tokens_total", direction="out") == 0, (
        "it was not written to its end"
    )
    assert ask(service, entry="read").status_code == 200


def test_one_too_many_is_told_to_come_back_and_the_others_are_served(project):
    with running(Catalogue(read_entries(["read"])), Limits(answers=1)) as service:
        context, events = begin(service)
        busy = ask(service, entry="read")
        assert_problem(busy, 429, "busy")
        assert busy.headers["retry-after"] == "1"
        assert service.post("/search", query="Lyon").status_code == 200, "searches go on"
        assert [name for name, _ in events][-1] == "done"
        context.__exit__(None, None, None)
        wait_until(lambda: ask(service, entry="read").status_code == 200, "it has recovered")


def test_what_takes_too_long_ends_with_504(project):
    limits = Limits(answer_seconds=1e-4)
    with running(Catalogue(read_entries(["read"])), limits) as service:
        assert_problem(ask(service, entry="read"), 504, "timeout")
        body = {"question": "Where is Lyon?", "entry": "read"}
        with service.client.stream("POST", "/answer", json=body) as response:
            name, members = list(read_events(response.iter_lines()))[-1]
        assert (name, members["status"]) == ("error", 504)
        wait_until(lambda: rows(service) == 0, "the row is free")


def test_a_shutdown_finishes_what_is_in_flight_and_takes_nothing_new(service):
    context, events = begin(service)
    service.server.should_exit = True
    wait_until(lambda: not listens(service.url), "the port is closed")
    assert [name for name, _ in events][-1] == "done"
    context.__exit__(None, None, None)


def listens(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as s:
        return s.connect_ex((host, int(port))) == 0


# -- an index that is replaced ----------------------------------------------------------------


def rebuild(texts: list[str]) -> None:
    """The corpus and its index anew, each folder replaced at once as stages do it."""
    write_corpus(texts, locator="second.txt")
    run_room("index", "words")


def test_a_replaced_index_is_picked_up_and_requests_in_flight_finish_on_the_old_one(service):
    held = service.catalogue.borrow(service.catalogue.entries["read"])
    old = held.__enter__()
    before = service.post("/search", query="Lyon").json()["hits"]
    rebuild(["Bonn is in Germany.", "Lyon is on the Rhone.", "Oslo.", "Rome."])
    wait_until(lambda: service.catalogue.reopened["new"] == 1, "the new index is open")
    after = service.post("/search", query="Lyon").json()["hits"]
    assert (before[0]["text"], after[0]["text"]) == (TEXTS[0], "Lyon is on the Rhone.")
    assert after[0]["locator"] == "second.txt:d1"
    found = old.shelf.retriever.search(["Lyon"], 1)[0]
    assert old.shelf.corpus.describe(found)[0]["text"] == TEXTS[0]
    assert old.shelf.retired and old.shelf.users == 1
    held.__exit__(None, None, None)


def test_an_index_that_is_gone_or_damaged_leaves_the_old_one_serving(service):
    shutil.rmtree("data/index/words")
    Path("data/index/words").mkdir()
    Path("data/index/words/meta.json").write_text("{")
    wait_until(lambda: service.catalogue.reopened["failed"] > 0, "it was tried")
    assert service.post("/search", query="Lyon").json()["hits"][0]["text"] == TEXTS[0]
    shutil.rmtree("data/index/words")
    rebuild(["Lyon again.", "x", "y", "z"])
    wait_until(lambda: service.catalogue.reopened["new"] == 1, "the sound one is open")
    assert service.post("/search", query="Lyon").json()["hits"][0]["text"] == "Lyon again."


def test_a_folder_that_is_still_being_filled_is_not_opened(project):
    catalogue = Catalogue(read_entries(["find"]))
    catalogue.open()
    catalogue.look()
    rebuild(["Lyon two.", "x", "y", "z"])
    catalogue.look()
    assert catalogue.reopened == {"new": 0, "failed": 0}, "seen once, it may still change"
    (Path("data/index/words") / "late").touch()
    catalogue.look()
    assert catalogue.reopened["new"] == 0
    catalogue.look()
    assert catalogue.reopened["new"] == 1
    catalogue.close()


def test_many_threads_search_while_the_index_is_replaced_and_none_fails(service):
    stop, bad = threading.Event(), []

    def search():
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while not stop.is_set():
                said = client.post("/search", json={"query": "Lyon", "k": 3})
                if said.status_code != 200 or "Lyon" not in said.json()["hits"][0]["text"]:
                    bad.append(said.text)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in (1, 2):
        rebuild([f"Lyon {n}.", "x", "y", "z"])
        wait_until(lambda n=n: service.catalogue.reopened["new"] == n, "it is reopened")
    stop.set()
    for thread in threads:
        thread.join()
    assert bad == []
