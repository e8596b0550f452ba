"""An index that fetches ahead, behind the service: a real clustered index, a real encoder."""

from pathlib import Path

import pytest
from http_worlds import (
    ABOUT_TOWNS,
    TOWNS,
    read_events,
    running,
    wait_until,
    write_clustered,
    write_corpus,
)
from rooms import run_room

from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.lookahead import Memory


@pytest.fixture
def service(project: Path):
    write_clustered()
    memory = Memory(hot_bytes=2**22, budget=2**20)
    with running(Catalogue(read_entries(), memory)) as service:
        yield service


def ask(service, *, lookahead: bool) -> list[tuple[str, dict]]:
    body = {"question": "Which town has a tower?", "entry": "ahead", "lookahead": lookahead}
    with service.client.stream("POST", "/answer", json=body) as response:
        return list(read_events(response.iter_lines()))


def of(told: list[tuple[str, dict]], name: str) -> list[dict]:
    return [members for named, members in told if named == name]


def test_clusters_are_copied_while_the_model_writes_and_the_answer_is_the_same(service):
    row, _ = service.client.get("/catalogue").json()
    assert row["lookahead"] and row["open"]
    without, ahead = ask(service, lookahead=False), ask(service, lookahead=True)
    assert of(without, "done")[0]["answer"] == of(ahead, "done")[0]["answer"]
    assert [e["hits"] for e in of(without, "evidence")] == [
        e["hits"] for e in of(ahead, "evidence")
    ]
    assert not of(without, "hint") and not of(without, "copy")
    assert sum(e["hits"] for e in of(without, "clusters")) == 0
    (hint,), copies = of(ahead, "hint"), of(ahead, "copy")
    writing = next(e for e in of(ahead, "step") if e["kind"] == "LLM")
    assert hint["query"] == "Which town has a tower?"
    assert copies and sum(c["clusters"] for c in copies) == 8
    assert all(c["start_ms"] <= c["end_ms"] <= writing["end_ms"] for c in copies)
    assert all(e["misses"] == 0 for e in of(ahead, "clusters")), "all that is probed was there"
    assert service.metric("quarry_prefetch", index="clusters", what="copied_clusters") == 8


def test_a_rebuilt_index_is_fetched_ahead_anew_and_the_old_engine_is_closed(service):
    ask(service, lookahead=True)
    old = service.catalogue.shelf(service.catalogue.entries["ahead"])
    write_corpus([*ABOUT_TOWNS, "Which town has a tower? Pisa."])
    run_room("index", "clusters")
    wait_until(lambda: service.catalogue.reopened["new"] == 1, "the new index is open")
    found = of(ask(service, lookahead=True), "evidence")[0]["hits"]
    assert "d30#0" in {hit["docid"] for hit in found}
    with pytest.raises(Exception, match="closed"):
        old.retriever.search(["tower"], 1)


def test_a_cluster_that_cannot_be_read_fails_its_question_and_the_service_goes_on(service):
    shelf = service.catalogue.shelf(service.catalogue.entries["ahead"])
    codes = next(Path("data/index/clusters").glob("codes.npy"))
    with codes.open("r+b") as f:  # the same file: the engine has it open
        f.seek(-64, 2)
        f.write(b"\xff" * 64)
    said = [service.post("/search", query=f"{town} has a port", k=3) for town in TOWNS]
    assert {r.status_code for r in said} <= {200, 500} and 500 in {r.status_code for r in said}
    broken = next(r for r in said if r.status_code == 500).json()
    assert "clusters" in broken["detail"] and "cluster" in broken["detail"]
    assert 200 in {r.status_code for r in said}, "other clusters are sound"
    assert shelf.retriever.stats()["failed"] > 0
