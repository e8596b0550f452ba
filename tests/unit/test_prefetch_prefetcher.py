"""The copying thread: windows, groups, who waits for whom. Events and counts, no clocks."""

import threading
import time

import numpy as np
import pytest
from prefetch_worlds import World

from stages.clusters import Batch
from stages.errors import QuarryError
from stages.serve.prefetch.hybrid import HybridIVF
from stages.serve.prefetch.prefetcher import Prefetcher
from stages.serve.prefetch.tiers import DiskTier, PagedTier, Throttle

SIZES = [64] * 8
CLUSTER = 64 * 24 * 4  # bytes
PATIENCE = 20  # seconds after which a test gives up


class Gate:
    """A cold tier whose copies wait to be let through, one by one; some clusters cannot be read."""

    def __init__(self, cold: DiskTier, *, broken: tuple[int, ...] = ()) -> None:
        self.file, self._cold, self._broken = cold.file, cold, broken
        self.permits, self.asked = threading.Semaphore(0), []
        self.came = threading.Semaphore(0)

    def read(self, clusters) -> Batch:
        self.asked.append([int(c) for c in clusters])
        self.came.release()
        if threading.current_thread().name == "prefetch":
            assert self.permits.acquire(timeout=PATIENCE)
        batch = self._cold.read(clusters)
        for c in self._broken:
            if batch.codes.pop(c, None) is not None:
                batch.errors[c] = QuarryError(f"cluster {c} is broken")
        return batch

    def let(self, n: int) -> None:
        self.permits.release(n)

    def wait(self) -> None:
        assert self.came.acquire(timeout=PATIENCE)

    def close(self) -> None:
        self._cold.close()


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "store", SIZES)


@pytest.fixture
def gate(world) -> Gate:
    return Gate(DiskTier(world.folder))


@pytest.fixture
def make(gate):
    """Prefetchers over the gate; closed at the end."""
    made = []

    def prefetcher(cold=gate, *, n_pages: int = 8, group: int = 2 * CLUSTER, **how):
        hot = PagedTier(cold.file, n_pages * 64 * (24 * 4 + 8))
        made.append(Prefetcher(cold, hot, group_bytes=group, **how))
        return made[-1], hot

    yield prefetcher
    gate.let(10**6)
    for prefetcher in made:
        prefetcher.close()


def near(world: World, *clusters: int) -> np.ndarray:
    """A query whose nearest clusters are these, in order: the others come behind, anyhow."""
    weights = 0.5 ** np.arange(len(clusters))
    basis = np.linalg.pinv(world.centroids.astype("f8"))
    wanted = np.full(len(world.centroids), -1.0)
    wanted[list(clusters)] = weights
    query = (basis @ wanted).astype("f4")
    assert np.argsort(-(world.centroids @ query))[: len(clusters)].tolist() == list(clusters)
    return query[None]


def test_copies_go_in_groups_and_a_group_is_a_miss_until_all_of_it_is_there(
    world, gate, make
) -> None:
    prefetcher, hot = make()
    handle = prefetcher.start(near(world, 3, 6, 1, 4), 4 * CLUSTER)
    gate.wait()
    assert not hot.resident().any() and not handle.wait(0), "start came back before any copy"
    gate.let(1)
    gate.wait()
    assert np.flatnonzero(hot.resident()).tolist() == [3, 6]
    search = HybridIVF(gate, hot)
    gate_was = len(gate.asked)
    _, _, stats = search.search(near(world, 3, 6, 1, 4), 5, 4)
    assert (stats.hits.tolist(), stats.misses.tolist()) == ([2], [2])
    assert gate.asked[gate_was:] == [[1, 4]], "read although their copy is on its way"
    gate.let(1)
    assert handle.wait(PATIENCE)
    assert gate.asked[:2] == [[3, 6], [1, 4]]
    assert handle.clusters == [3, 6, 1, 4] and handle.nbytes == 4 * CLUSTER
    assert [c.n_clusters for c in handle.copies] == [2, 2]


def test_neighbours_in_a_group_are_one_read(world, gate) -> None:
    assert gate._cold.read([4, 3]).n_reads == 1


def test_a_cancelled_window_finishes_the_group_it_is_at(world, gate, make) -> None:
    prefetcher, hot = make(group=CLUSTER)
    handle = prefetcher.start(near(world, 3, 6, 1), 3 * CLUSTER)
    gate.wait()
    handle.cancel()
    gate.let(9)
    assert handle.wait(PATIENCE)
    assert np.flatnonzero(hot.resident()).tolist() == [3] and handle.nbytes == CLUSTER
    prefetcher.add(handle, near(world, 5))
    assert handle.wait(PATIENCE) and handle.nbytes == CLUSTER, "nobody joins it any more"


def test_queries_that_join_a_window_share_its_budget_rank_by_rank(world, gate, make) -> None:
    prefetcher, _ = make(group=CLUSTER)
    handle = prefetcher.start(near(world, 0, 1, 2), 4 * CLUSTER)
    gate.wait()  # the copy of 0 has begun
    prefetcher.add(handle, near(world, 5, 6, 7))
    gate.let(9)
    assert handle.wait(PATIENCE)
    assert handle.clusters == [0, 5, 1, 6], "planned anew: rank 1 of both, then rank 2"
    again = prefetcher.start(near(world, 5, 2), 2 * CLUSTER)
    assert again.wait(PATIENCE) and again.clusters[0] == 2 and 5 not in again.clusters


def test_a_window_that_is_done_takes_more_queries(world, gate, make) -> None:
    prefetcher, _ = make()
    gate.let(99)
    handle = prefetcher.start(near(world, 0), CLUSTER)
    assert handle.wait(PATIENCE) and handle.clusters == [0]
    prefetcher.add(handle, near(world, 5))
    assert handle.wait(PATIENCE) and handle.clusters == [0], "its budget is spent"


def test_a_cluster_that_cannot_be_read_costs_itself_alone(world, make) -> None:
    gate = Gate(DiskTier(world.folder), broken=(6,))
    gate.let(99)
    prefetcher, _ = make(gate)
    handle = prefetcher.start(near(world, 3, 6, 1), 3 * CLUSTER)
    assert handle.wait(PATIENCE)
    assert handle.clusters == [3, 1] and "6 is broken" in str(handle.errors[0])
    assert prefetcher.totals.errors == 1


def test_what_fails_in_the_thread_is_in_the_handle_and_the_thread_lives(world, gate, make) -> None:
    prefetcher, _ = make()
    gate.let(99)

    def fail() -> np.ndarray:
        raise QuarryError("no encoder")

    handle = prefetcher.start(fail, CLUSTER)
    assert handle.wait(PATIENCE) and str(handle.errors[0]) == "no encoder"
    assert prefetcher.start(near(world, 2), CLUSTER).wait(PATIENCE)
    assert prefetcher.totals.clusters == 1


def test_nothing_to_do_is_done(world, gate, make) -> None:
    prefetcher, _ = make()
    for queries, budget in ((near(world, 2), 0), (world.queries(0), 10 * CLUSTER)):
        handle = prefetcher.start(queries, budget)
        assert handle.wait(PATIENCE) and handle.nbytes == 0 and not handle.errors
    assert gate.asked == []


def test_room_limits_a_budget_above_it(world, gate, make) -> None:
    prefetcher, hot = make(n_pages=3)
    gate.let(99)
    handle = prefetcher.start(near(world, 4, 2, 0, 7), 10**12)
    assert handle.wait(PATIENCE)
    assert handle.clusters == [4, 2, 0] and hot.free_pages() == 0


def test_trimming_evicts_the_coldest_to_the_fraction(world, gate, make) -> None:
    prefetcher, hot = make()
    gate.let(99)
    for wanted, budget in (((0, 1, 2, 3), 4), ((1, 3, 4, 5), 2)):
        assert prefetcher.start(near(world, *wanted), budget * CLUSTER).wait(PATIENCE)
    assert prefetcher.hotness.values[:6].tolist() == [512, 1536, 512, 1536, 1024, 1024]
    assert prefetcher.trim(0.5).wait(PATIENCE)
    assert np.flatnonzero(hot.resident()).tolist() == [1, 3, 4, 5]
    assert prefetcher.totals.evicted == 2
    assert prefetcher.trim(0.0).wait(PATIENCE) and hot.free_pages() == 8


def test_closing_does_not_copy_what_is_still_planned(world, gate, make) -> None:
    prefetcher, hot = make(group=CLUSTER)
    prefetcher.start(near(world, 3, 6, 1), 3 * CLUSTER)
    gate.wait()
    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    while not prefetcher._closed:
        time.sleep(0.001)
    gate.let(1)
    closing.join(PATIENCE)
    assert hot.resident().sum() == 1 and len(gate.asked) == 1


# -- check 8 --------------------------------------------------------------------------------


def test_all_copies_are_made_while_the_model_s_call_is_blocked(world, gate, make) -> None:
    """By events alone: the call ends when the last copy is there, and the search reads nothing."""
    prefetcher, hot = make(group=CLUSTER)
    query = near(world, 3, 6, 1)
    handle = prefetcher.start(query, 8 * CLUSTER)
    gate.let(8)
    assert handle.wait(PATIENCE), "the caller does nothing but wait, as in a model's call"
    assert len(gate.asked) == 8
    _, _, stats = HybridIVF(gate, hot).search(query, 5, 3)
    assert stats.misses.tolist() == [0] and len(gate.asked) == 8


def overlapped(world: World) -> tuple[float, float, float, int]:
    """Seconds: in all, asked of the model, of the search; and misses. Copies take 0.2 s."""
    cold = Throttle(DiskTier(world.folder), 8 * CLUSTER / 0.2)
    hot = PagedTier(cold.file, 2**20)
    prefetcher, search = Prefetcher(cold, hot, group_bytes=CLUSTER), HybridIVF(cold, hot)
    query, t_llm = near(world, 3, 6, 1), 0.3
    start = time.perf_counter()
    handle = prefetcher.start(query, 8 * CLUSTER)
    time.sleep(t_llm)
    called = time.perf_counter()
    _, _, stats = search.search(query, 5, 3)
    end = time.perf_counter()
    prefetcher.close()
    assert handle.nbytes == 8 * CLUSTER
    return end - start, t_llm, end - called, int(stats.misses.sum())


def test_wall_time_is_the_window_and_the_search_within_a_tenth(world) -> None:
    """The best of three: what else runs on the machine does not count."""
    for _ in range(3):
        wall, t_llm, t_search, misses = overlapped(world)
        if misses == 0 and wall <= 1.1 * (t_llm + t_search) and t_search < 0.1:
            break
    else:
        pytest.fail(f"{wall:.3f} s for {t_llm} + {t_search:.3f} s, {misses} misses")
