"""Check 7, whatever happens: what is counted adds up, and nothing exceeds what it may take."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefetch_worlds import World

from stages.serve.prefetch.hybrid import HybridIVF
from stages.serve.prefetch.plan import plan
from stages.serve.prefetch.prefetcher import Prefetcher
from stages.serve.prefetch.tiers import PAGE, DiskTier, PagedTier

D, PATIENCE = 8, 20
VECTOR = D * 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base, n = tmp_path_factory.mktemp("worlds"), iter(range(10**6))
    return lambda: base / str(next(n))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_plan_is_what_one_visit_after_another_gives(data) -> None:
    """The card's loop, rank by rank and query by query."""
    depth = data.draw(st.integers(1, 12))
    ranked = np.array(
        [data.draw(st.permutations(range(12)))[:depth] for _ in range(data.draw(st.integers(1, 4)))]
    )
    resident = np.array(data.draw(st.lists(st.booleans(), min_size=12, max_size=12)))
    nbytes = np.array(data.draw(st.lists(st.integers(0, 40), min_size=12, max_size=12)))
    budget, room = data.draw(st.integers(0, 200)), data.draw(st.integers(0, 20))
    pages = -(-nbytes // 10)
    copied, hits, last, refused = [], [], 0, False
    left, free, visits = budget, room, 0
    for rank in range(depth):
        for own in ranked[:, rank]:
            visits += 1
            if resident[own] or own in copied:
                hits.append((visits, own))
            elif nbytes[own] <= left and pages[own] <= free:
                copied.append(own)
                left, free, last = left - nbytes[own], free - pages[own], visits
            elif not refused:
                refused, last = True, visits
    found = plan(ranked, resident, nbytes, budget, pages=pages, room=room)
    assert found.clusters.tolist() == copied
    assert found.hits.tolist() == [c for at, c in hits if not refused or at < last]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_hits_and_misses_budget_and_room_add_up_after_any_sequence(folders, data) -> None:
    sizes = data.draw(st.lists(st.integers(0, 150), min_size=1, max_size=10))
    world = World(folders(), sizes, d=D, seed=data.draw(st.integers(0, 99)))
    n_pages = data.draw(st.integers(0, 12))
    cold = DiskTier(world.folder)
    hot = PagedTier(cold.file, n_pages * PAGE * (VECTOR + 8))
    group = data.draw(st.sampled_from([1, 64 * VECTOR, 10**6]))
    prefetcher, hybrid = Prefetcher(cold, hot, group_bytes=group), HybridIVF(cold, hot)
    nprobe = data.draw(st.integers(1, len(sizes)))
    copied = 0
    for _ in range(data.draw(st.integers(1, 6))):
        match data.draw(st.sampled_from(["prefetch", "prefetch", "search", "trim"])):
            case "prefetch":
                budget = data.draw(st.integers(0, 300 * VECTOR))
                handle = prefetcher.start(world.queries(data.draw(st.integers(1, 3))), budget)
                prefetcher.add(handle, world.queries(1))
                assert handle.wait(PATIENCE) and not handle.errors
                assert handle.nbytes == sum(sizes[c] for c in handle.clusters) * VECTOR <= budget
                assert len(set(handle.clusters)) == len(handle.clusters)
                copied += handle.nbytes
            case "search":
                queries = world.queries(data.draw(st.integers(1, 4)))
                scores, rows, stats = hybrid.search(queries, 5, nprobe)
                expected, ids = world.faiss(queries, 5, nprobe)
                assert (scores == expected).all() and (rows == ids).all()
                assert (stats.hits + stats.misses == nprobe).all()
                assert stats.nbytes <= sum(sizes) * VECTOR
            case "trim":
                fraction = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
                assert prefetcher.trim(fraction).wait(PATIENCE)
                used = hot.capacity - hot.free_pages()
                assert used <= fraction * hot.capacity
        table = hot._pages.table
        pages = table[table >= 0]
        assert len(set(pages.tolist())) == len(pages), "no page belongs to two clusters"
        assert len(pages) + hot.free_pages() == hot.capacity, "no page is lost"
        warm = prefetcher.hotness.values > 0
        assert (warm <= hot.resident()).all(), "only residents are warm"
    assert prefetcher.totals.nbytes == copied
    prefetcher.close()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 8), st.data())
def test_the_k_best_are_a_prefix_of_the_k_plus_one_best(folders, seed, nprobe, data) -> None:
    world = World(folders(), [30, 64, 1, 0, 90, 5, 64, 20], d=D, seed=seed, twins=40)
    cold = DiskTier(world.folder)
    hot = PagedTier(cold.file, 2**20)
    hot.put(cold.read(data.draw(st.lists(st.integers(0, 7)))).codes)
    hybrid, queries = HybridIVF(cold, hot), np.vstack([world.queries(2), world.vectors[:1]])
    longest, rows, _ = hybrid.search(queries, 400, nprobe)
    for k in (1, 2, 17, 60):
        scores, best, _ = hybrid.search(queries, k, nprobe)
        assert (scores == longest[:, :k]).all() and (best == rows[:, :k]).all()
