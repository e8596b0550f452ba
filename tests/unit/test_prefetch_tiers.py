"""The two tiers of disk and memory: pages, searches that overlap evictions, a slow disk."""

import os
import threading

import numpy as np
import pytest
from prefetch_worlds import World

from stages.errors import QuarryError
from stages.serve.prefetch import tiers
from stages.serve.prefetch.tiers import DiskTier, PagedTier, Throttle

SIZES = [100, 64, 0, 1, 65, 130]
PAGES = [2, 1, 0, 1, 2, 3]


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "store", SIZES)


@pytest.fixture
def cold(world) -> DiskTier:
    return DiskTier(world.folder)


def hot_with(cold: DiskTier, n_pages: int, page: int = 64) -> PagedTier:
    return PagedTier(cold.file, n_pages * page * (cold.file.code_bytes + 8), page=page)


def put(cold: DiskTier, hot: PagedTier, *clusters: int) -> list[int]:
    return hot.put(cold.read(clusters).codes)


def test_a_cluster_takes_whole_pages_and_gives_them_back(cold) -> None:
    hot = hot_with(cold, 6)
    assert hot.pages_of.tolist() == PAGES and hot.capacity == 6
    assert put(cold, hot, 0, 4) == [0, 4]
    assert hot.free_pages() == 2
    assert hot.resident().tolist() == [True, False, True, False, True, False], "2 is empty"
    hot.evict([0])
    assert hot.free_pages() == 4 and not hot.resident()[0]
    assert put(cold, hot, 5, 1) == [1, 5]
    assert hot.free_pages() == 0


def test_what_has_no_room_stays_out_and_a_smaller_one_may_come_in(cold) -> None:
    hot = hot_with(cold, 3)
    assert put(cold, hot, 1, 3, 5) == [1, 3], "5 needs three pages, one is left"
    assert put(cold, hot, 1) == [], "it is in the buffer once"
    assert hot.free_pages() == 1


def test_room_is_no_more_than_all_clusters_need_and_may_be_none(cold) -> None:
    assert PagedTier(cold.file, 2**40).capacity == sum(PAGES)
    for hot_bytes in (0, -1, 63 * (24 * 4 + 8)):
        hot = PagedTier(cold.file, hot_bytes)
        assert hot.capacity == 0 and put(cold, hot, 0, 1) == []


def test_a_page_that_was_given_back_is_not_written_while_a_search_reads_it(world, cold) -> None:
    hot = hot_with(cold, 2)
    put(cold, hot, 0)
    query = world.queries(1)
    with hot.held() as before:
        first = before.best(query, 5, np.array([[0]]))
        hot.evict([0])
        assert hot.free_pages() == 0 and put(cold, hot, 1) == [], "the pages are still read"
        with hot.held() as after:
            assert not after.resident[0]
        again = before.best(query, 5, np.array([[0]]))
        assert before.resident[0] and all((a == b).all() for a, b in zip(first, again, strict=True))
    assert hot.free_pages() == 2 and put(cold, hot, 1) == [1]


def test_searches_that_began_after_an_eviction_do_not_hold_its_pages(cold) -> None:
    hot = hot_with(cold, 2)
    put(cold, hot, 0)
    with hot.held():
        hot.evict([0])
        later = hot.held()
        later.__enter__()
    assert hot.free_pages() == 2
    later.__exit__(None, None, None)


def test_pages_of_other_sizes_hold_the_same_vectors(world, cold) -> None:
    query = world.queries(3)
    clusters = np.array([[0, 5, -1]] * 3)
    found = []
    for page in (16, 32, 128):
        hot = PagedTier(cold.file, 2**24, page=page)
        put(cold, hot, 0, 5)
        with hot.held() as held:
            found.append(held.best(query, 7, clusters))
    for scores, places in found[1:]:
        assert (scores == found[0][0]).all() and (places == found[0][1]).all()


# -- memory that is not there -------------------------------------------------------------


def test_more_memory_than_is_free_is_refused_before_it_is_taken(cold, monkeypatch) -> None:
    monkeypatch.setattr(tiers, "available_bytes", lambda: 10_000)
    with pytest.raises(QuarryError, match=r"needs 59,904 bytes and 10,000 are free. Give it fewer"):
        PagedTier(cold.file, 2**30)


def test_a_cold_tier_without_its_vectors_leaves_no_file_open(tmp_path) -> None:
    folder = World(tmp_path / "short", SIZES, codecs=["fp16"]).folder
    (folder / "codes.npy").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(QuarryError, match="index 'short'"):
        DiskTier(folder, "fp16")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_system_that_refuses_is_a_clear_error(cold, monkeypatch) -> None:
    def refuse(self, n: int, size: int) -> None:
        raise MemoryError

    monkeypatch.setattr(tiers.Lists, "reserve", refuse)
    with pytest.raises(QuarryError, match="index 'store': the hot tier needs.*the system refused"):
        PagedTier(cold.file, 2**30)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert 2**20 < tiers.available_bytes() < 2**50


# -- the throttle, on a clock that only it moves --------------------------------------------


class Clock:
    """Time passes when someone sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_read_takes_its_bytes_over_the_bandwidth_and_a_latency_per_span(cold) -> None:
    clock = Clock()
    slow = Throttle(cold, 1000.0, 0.5, clock=clock, sleep=clock.sleep)
    slow.read([0, 1])  # neighbours
    assert clock.slept == [pytest.approx(164 * 96 / 1000 + 0.5)]
    slow.read([0, 3])
    assert clock.slept[1] == pytest.approx(101 * 96 / 1000 + 2 * 0.5), "two spans"
    slow.read([2])
    assert len(clock.slept) == 2, "an empty cluster is not read"


def test_two_readers_share_the_device(cold) -> None:
    """Whoever comes second waits for the first: together they take as long as one read of both."""
    clock = Clock()
    slow = Throttle(cold, 1000.0, clock=clock, sleep=clock.slept.append)  # time stands still
    slow.read([0])
    slow.read([1])
    assert clock.slept == [pytest.approx(9.6), pytest.approx(9.6 + 64 * 96 / 1000)]


def test_a_throttle_changes_no_byte_and_refuses_nonsense(cold) -> None:
    slow = Throttle(cold, 1e12)
    assert (slow.read([4]).codes[4] == cold.read([4]).codes[4]).all()
    places = np.array([0, 3, 4])
    assert (slow.read_vectors(places) == cold.read_vectors(places)).all()
    for bandwidth, latency in ((0, 0), (-1, 0), (1, -1)):
        with pytest.raises(QuarryError, match="throttle"):
            Throttle(cold, bandwidth, latency)


def test_dropping_the_page_cache_keeps_the_bytes(cold, world) -> None:
    before = cold.read([0]).codes[0].copy()
    cold.forget_pages()
    assert (cold.read([0]).codes[0] == before).all()


# -- many threads ---------------------------------------------------------------------------


def test_searches_beside_copies_and_evictions_see_whole_clusters(world, cold) -> None:
    """Two searching threads, one that copies and evicts: every result is one of faiss's."""
    hot = hot_with(cold, 5)
    queries = world.queries(2)
    truth = {}
    full = PagedTier(cold.file, 2**24)
    full.put(cold.read(range(6)).codes)
    for c in range(6):
        with full.held() as held:
            truth[c] = held.best(queries, 3, np.array([[c]] * 2))
    stop, wrong = threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            with hot.held() as held:
                for c in np.flatnonzero(held.resident):
                    scores, places = held.best(queries, 3, np.array([[c]] * 2))
                    if not ((scores == truth[c][0]).all() and (places == truth[c][1]).all()):
                        wrong.append(c)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for t in threads:
        t.start()
    rng = np.random.default_rng(0)
    for _ in range(300):
        put(cold, hot, *rng.choice(6, 2, replace=False))
        hot.evict(rng.choice(6, 1))
    stop.set()
    for t in threads:
        t.join()
    assert not wrong
    hot.evict(np.flatnonzero(hot.resident()))
    assert hot.free_pages() == 5, "no page was lost"
