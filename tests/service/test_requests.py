"""Requests side by side over an index that fetches ahead: counted in clusters, never in seconds."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from http_worlds import read_events, running, wait_until, write_clustered

from stages.effects import Search
from stages.errors import QuarryError
from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.lookahead import Own, Together
from stages.serve.http.searching import Asked
from stages.tools import Tools

QUESTION = "Which town has a tower?"


@pytest.fixture
def service(project: Path):
    write_clustered()
    with running(Catalogue(read_entries(), {"hot_mib": 4, "budget_mib": 1})) as service:
        yield service


@pytest.fixture
def engine(service):
    return service.catalogue.shelf(service.catalogue.entries["ahead"]).retriever


class Gate:
    """A tier whose reads wait until they are let; it notes what was read."""

    def __init__(self, cold) -> None:
        self._cold, self.file = cold, cold.file
        self.began, self.go = threading.Event(), threading.Event()
        self.reads: list[list[int]] = []

    def read(self, clusters):
        self.reads.append([int(c) for c in clusters])
        self.began.set()
        assert self.go.wait(60)
        return self._cold.read(clusters)

    def close(self) -> None:
        self._cold.close()


def hold_model(service, monkeypatch) -> threading.Event:
    """The model writes nothing until the event is set."""
    model, may = service.catalogue.desks["lm"].generator._model, threading.Event()
    step = model.step
    monkeypatch.setattr(model, "step", lambda *a: may.wait(60) and step(*a))
    return may


def answer(service) -> list[tuple[str, dict]]:
    body = {"question": QUESTION, "entry": "ahead"}
    with service.client.stream("POST", "/answer", json=body) as response:
        return list(read_events(response.iter_lines()))


def n_searches(told: list[tuple[str, dict]]) -> int:
    return [m["kind"] for name, m in told if name == "step"].count("Search")


def test_a_search_beside_an_answer_leaves_the_answers_window_open(service, engine, monkeypatch):
    prefetcher = engine._version.prefetcher
    prefetcher._group_bytes = 1  # every cluster is a group
    gate = prefetcher._cold = Gate(prefetcher._cold)
    writes = hold_model(service, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(answer, service)
        assert gate.began.wait(60), "the first cluster is on its way"
        assert service.post("/search", query="Oslo has a port").status_code == 200
        assert len(gate.reads) == 1
        gate.go.set()
        assert prefetcher.trim(1.0).wait(60), "whatever was in the thread's queue is done"
        assert engine.stats()["copied_clusters"] == 8, "all of the window's"
        writes.set()
        told = asked.result(60)
    assert sum(m["clusters"] for name, m in told if name == "copy") == 8
    found = [(m["hits"], m["misses"]) for name, m in told if name == "clusters"]
    assert found == [(3, 0)] * n_searches(told), "of its own searches only, and all was there"


def test_an_answer_is_told_its_own_copies_and_searches_alone(service, monkeypatch):
    writes = hold_model(service, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(answer, service)
        wait_until(lambda: service.metric("quarry_active", what="answers") == 1, "it is asked")
        for town in ("Oslo", "Rome", "Lima"):
            assert service.post("/search", query=f"{town} has a port").status_code == 200
        writes.set()
        told = asked.result(60)
    assert [name for name, _ in told].count("clusters") == n_searches(told)


def test_two_similar_searches_that_wait_are_one_call_and_copy_their_clusters_once(service, engine):
    hybrid = engine._version._hybrid
    gate = hybrid._cold = Gate(hybrid._cold)
    before = engine.stats()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(service.post, "/search", query="Kyoto has a market", index="clusters")
        assert gate.began.wait(60), "the index is busy"
        queries = ["Lyon has a port", "the port that Lyon has"]
        waiting = [pool.submit(service.post, "/search", query=q) for q in queries]
        wait_until(lambda: searcher(service)._queue.qsize() == 2, "both wait")
        gate.go.set()
        assert {f.result(60).status_code for f in (first, *waiting)} == {200}
    of_first, of_both = gate.reads
    after = engine.stats()
    assert after["searches"] - before["searches"] == 2 and after["queries"] - before["queries"] == 3
    alone = [set(probed(engine, q)) for q in queries]
    assert alone[0] & alone[1], "they have clusters in common"
    assert sorted(of_both) == sorted(alone[0] | alone[1]), "each once"
    assert len(of_both) < len(alone[0]) + len(alone[1]) and len(of_first) == 3


def searcher(service):
    return service.catalogue._searchers[service.catalogue.entries["ahead"].place]


def probed(engine, query: str) -> list[int]:
    from stages.clusters import nearest_clusters

    version = engine._version
    (row,) = nearest_clusters(engine.vectors([query]), version.cold.file.centroids, version.nprobe)
    return row.tolist()


# -- which go together --------------------------------------------------------------------------


class Corners:
    """An engine whose queries lie in the corner of their first letter."""

    def vectors(self, queries):
        if "?" in queries:
            raise QuarryError("no vector")
        return np.array([np.eye(26)[ord(q[0]) - 97] for q in queries], dtype=np.float32)


def cut(*queries: str, engine=None, **search) -> list[list[str]]:
    engine = engine or Corners()
    asked = [
        Asked(Search(q, search.get("k", 3), unit=search.get("unit", "passage")),
              Tools(retriever=Own(engine, i)), Future())
        for i, q in enumerate(queries)
    ]  # fmt: skip
    return [[a.effect.query for a in batch] for batch in Together().cut(asked)]


def test_what_waits_is_cut_into_micro_batches_of_similar_queries():
    assert cut("a1", "b1", "a2", "b2", "a3", "b3", "a4", "b4") == [
        ["a1", "a2", "a3", "a4"], ["b1", "b2", "b3", "b4"],
    ]  # fmt: skip
    assert cut("a1") == [["a1"]] and cut() == []
    assert cut("a1", "a2", unit="document") == [["a1"], ["a2"]]
    assert cut("a1", "?", "a2") == [["a1"], ["?"], ["a2"]], "each has its own error"
