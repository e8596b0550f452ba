"""Requests that share an engine: whose window closes, what stays, what is read once."""

from collections.abc import Iterator

import numpy as np
import pytest
from index_worlds import encoder_dir
from test_prefetch_engine import LAND, PATIENCE, Gate, build, settle

from stages.errors import QuarryError
from stages.serve.prefetch.engine import open_engine


@pytest.fixture(scope="module")
def land(tmp_path_factory):
    return build(tmp_path_factory.mktemp("land"), LAND, tmp_path_factory.mktemp("records"))


@pytest.fixture
def open_it(land) -> Iterator:
    """Engines over the land, closed at the end."""
    opened = []

    def engine(**settings):
        given = {"hot_bytes": 2**24, "budget": 2**24, **settings}
        opened.append(open_engine(land, encoder_dir("dense"), **given))
        return opened[-1]

    yield engine
    for one in opened:
        one.close()


class Counting:
    """The cold tier of searches: every cluster that was read, as often as it was."""

    def __init__(self, engine) -> None:
        hybrid = engine._version._hybrid
        self._cold, hybrid._cold = hybrid._cold, self
        self.file, self.read_clusters = self._cold.file, []

    def read(self, clusters):
        self.read_clusters += [int(c) for c in clusters]
        return self._cold.read(clusters)


def test_searches_of_two_requests_are_one_call_that_reads_each_cluster_once(open_it) -> None:
    engine = open_it(nprobe=3)
    cold = Counting(engine)
    a, b = engine.begin(), engine.begin()
    queries = ["a volcano in Sicily", "a volcano near Sicily"]
    alone = [engine.search([q], 3, t)[0] for q, t in zip(queries, (a, b), strict=True)]
    apart, cold.read_clusters = cold.read_clusters, []
    assert engine.search(queries, 3, [a, b]) == alone
    assert sorted(cold.read_clusters) == sorted(set(apart)), "the union, each once"
    assert len(apart) == 6 > len(cold.read_clusters)
    own = engine.timeline(request=b)
    assert [e["hits"] + e["misses"] for e in own] == [3, 3], "one of its own, one of the two"
    assert engine.traces() == [] and engine.stats()["queries"] == 4


def test_a_joint_search_closes_the_windows_of_its_requests_and_no_other(open_it) -> None:
    engine = open_it(group_bytes=1)
    gate = Gate(engine)
    a, b, c = engine.begin(), engine.begin(), engine.begin()
    handles = []
    for token, hint in ((a, "volcano"), (b, "bridge"), (c, "harbour")):
        engine.prefetch(hint, token)
        handles.append(engine._open[token].window.handle)
    assert gate.began.wait(PATIENCE)
    engine.search(["volcano", "bridge"], 1, [a, b])
    assert [h.cancelled for h in handles] == [True, True, False]
    gate.open()
    assert handles[2].wait(PATIENCE) and len(handles[2].clusters) > 1


def test_a_request_that_ends_leaves_what_an_open_window_brought(open_it) -> None:
    engine = open_it(cache_fraction=0.0)
    a, b = engine.begin(), engine.begin()
    engine.prefetch("volcano", a)
    of_a = engine._open[a].window.handle
    assert of_a.wait(PATIENCE)
    brought = engine._version.hot.resident().sum()
    assert brought > 0
    engine.search(["bridge"], 1, b)
    engine.end_request(b)  # it brought nothing: nothing goes
    settle(engine)
    assert engine._version.hot.resident().sum() == brought
    c = engine.begin()
    engine.prefetch("a river", c)
    engine.end_request(c)  # it may go, and a's stay
    settle(engine)
    assert engine._version.hot.resident()[of_a.clusters].all()
    engine.end_request(a)
    settle(engine)
    assert engine.stats()["resident_pages"] == 0


def test_a_timeline_of_one_request_has_no_copies_of_another(open_it) -> None:
    engine = open_it()
    a, b = engine.begin(), engine.begin()
    engine.prefetch("volcano", a)
    assert engine._open[a].window.handle.wait(PATIENCE)
    engine.search(["bridge"], 1, b)
    assert {e["kind"] for e in engine.timeline(request=a)} == {"copy"}
    assert {e["kind"] for e in engine.timeline(request=b)} == {"search"}
    assert {e["kind"] for e in engine.timeline()} == {"copy", "search"}
    engine.end_request(b)
    assert {e["kind"] for e in engine.timeline(request=b)} <= {"search"}


def test_after_forget_the_same_hint_copies_the_same_clusters_again(open_it) -> None:
    engine = open_it()
    copied = []
    for _ in range(2):
        a = engine.begin()
        engine.prefetch("volcano", a)
        handle = engine._open[a].window.handle
        assert handle.wait(PATIENCE)
        engine.search(["volcano"], 1, a)
        engine.end_request(a)
        copied.append(list(handle.clusters))
        assert engine._version._vectors._kept
        engine.forget()
        assert not engine._version._vectors._kept and engine.stats()["resident_pages"] == 0
    assert copied[0] == copied[1] != []
    a = engine.begin()
    engine.prefetch("volcano", a)
    assert engine._open[a].window.handle.wait(PATIENCE)
    engine.forget()
    assert engine._version.hot.resident()[copied[0]].all(), "an open window keeps its own"


def test_vectors_are_those_of_the_search_and_a_closed_engine_has_none(open_it) -> None:
    engine = open_it()
    vectors = engine.vectors(["volcano", "bridge", "volcano"])
    assert np.array_equal(vectors[0], vectors[2]) and not np.array_equal(vectors[0], vectors[1])
    engine.close()
    with pytest.raises(QuarryError, match="closed"):
        engine.vectors(["volcano"])
