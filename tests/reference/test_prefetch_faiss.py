"""Hybrid search against faiss's ``IndexIVFFlat``: the same bits, whatever is resident."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefetch_worlds import World

from stages.serve.prefetch.hybrid import HybridIVF
from stages.serve.prefetch.tiers import DiskTier, PagedTier

ROOM = 2**24


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A new folder for every example."""
    base, n = tmp_path_factory.mktemp("worlds"), iter(range(10**6))
    return lambda: base / str(next(n))


def tiers(world: World, resident, *, codec="fp32", hot_bytes: int = ROOM) -> HybridIVF:
    cold = DiskTier(world.folder, codec)
    hot = PagedTier(cold.file, hot_bytes)
    hot.put(cold.read(resident).codes)
    return HybridIVF(cold, hot)


def ties_by_row(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """faiss's rows, equal scores in order."""
    return np.take_along_axis(rows, np.lexsort((rows, -scores), axis=1), 1)


SIZES = st.lists(
    st.sampled_from([0, 1, 2, 15, 63, 64, 65, 130]) | st.integers(0, 200), min_size=1, max_size=8
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_probed_has_faiss_ids_and_bits_for_any_resident_set(folders, data) -> None:
    sizes = data.draw(SIZES)
    d = data.draw(st.sampled_from([2, 7, 24, 33, 384]))
    world = World(folders(), sizes, d=d, seed=data.draw(st.integers(0, 999)))
    resident = data.draw(st.lists(st.integers(0, len(sizes) - 1), unique=True))
    queries = world.queries(data.draw(st.integers(1, 5)))
    k, nprobe = data.draw(st.sampled_from([1, 3, 10, 500])), data.draw(st.integers(1, len(sizes)))
    scores, rows, stats = tiers(world, resident).search(queries, k, nprobe)
    expected, ids = world.faiss(queries, k, nprobe)
    assert (scores == expected).all(), "every bit"
    assert (rows == ids).all()
    assert (stats.hits + stats.misses == nprobe).all()
    assert ((rows == -1) == np.isneginf(scores)).all()


@pytest.mark.parametrize("resident", [[], [0, 1, 2, 3, 4, 5]], ids=["empty", "full"])
def test_the_empty_and_the_full_resident_set(folders, resident) -> None:
    world = World(folders(), [40, 0, 300, 1, 65, 7], seed=3)
    queries = world.queries(9)
    scores, rows, stats = tiers(world, resident).search(queries, 10, 3)
    expected, ids = world.faiss(queries, 10, 3)
    assert (scores == expected).all() and (rows == ids).all()
    if resident:
        assert stats.misses.sum() == 0 and stats.nbytes == 0
    else:
        assert stats.hits.sum() <= 9, "the empty cluster alone is never a miss"


@pytest.mark.parametrize("k", [1, 2, 5, 40, 1000])
def test_equal_scores_come_by_row_also_where_k_cuts_through_them(folders, k: int) -> None:
    world = World(folders(), [120, 80, 1, 64], seed=4, twins=150)
    twin = world.vectors[:1]
    for resident in ([], [0], [1, 3], [0, 1, 2, 3]):
        scores, rows, _ = tiers(world, resident).search(twin, k, 4)
        everything, ids = world.faiss(twin, 265, 4)
        assert (scores[0, :265] == everything[0, :k]).all()
        assert (rows[0, :265] == ties_by_row(everything, ids)[0, :k]).all()
        assert (rows[0, 265:] == -1).all()


# -- check 2: everything that is resident ---------------------------------------------------


def test_resident_scope_with_all_resident_is_exhaustive_and_with_none_is_ivf(folders) -> None:
    world = World(folders(), [40, 0, 300, 1, 65, 7], seed=5)
    queries = world.queries(6)
    scores, rows, _ = tiers(world, range(6)).search(queries, 10, 1, "resident")
    expected, ids = world.faiss(queries, 10, 6)
    assert (scores == expected).all() and (rows == ids).all()
    scores, rows, _ = tiers(world, []).search(queries, 10, 2, "resident")
    expected, ids = world.faiss(queries, 10, 2)
    assert (scores == expected).all() and (rows == ids).all()


def test_recall_only_grows_with_the_resident_set(folders) -> None:
    world = World(folders(), [60] * 10, seed=6)
    queries = world.queries(20)
    _, truth = world.faiss(queries, 10, 10)
    found = []
    for n in range(11):
        _, rows, _ = tiers(world, range(n)).search(queries, 10, 2, "resident")
        found.append([len({*a} & {*b}) for a, b in zip(rows, truth, strict=True)])
    assert (np.diff(found, axis=0) >= 0).all() and sum(found[0]) < sum(found[10]) == 200


# -- short codes ----------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "apart"), [("fp16", 1e-3), ("int8", 1e-2)])
def test_short_codes_have_exact_scores_and_miss_nothing_that_is_clearly_better(
    folders, codec: str, apart: float
) -> None:
    """Scores to 1e-6 of float64 products; ids but for scores closer than ``apart``."""
    world = World(folders(), [200, 150, 80, 0, 64], seed=7, d=64, codecs=[codec])
    queries = world.queries(12)
    probed, _ = world.faiss(queries, 10, 3)
    every = {}
    for resident in ([], [0, 4], range(5)):
        scores, rows, stats = tiers(world, resident, codec=codec).search(queries, 10, 3)
        products = (queries.astype("f8") @ world.vectors.T.astype("f8"))[
            np.arange(12)[:, None], rows
        ]
        np.testing.assert_allclose(scores, products, atol=1e-6)
        assert (scores[:, -1] >= probed[:, -1] - apart).all()
        every[str(resident)] = (scores.tobytes(), rows.tobytes())
        assert stats.nbytes > 0, "the candidates were read again"
    assert len(set(every.values())) == 1, "the resident set changes nothing here either"


def test_a_page_of_short_codes_takes_a_half_and_a_quarter(folders) -> None:
    world = World(folders(), [64], d=64, codecs=["fp16", "int8"])
    page = {
        codec: PagedTier(DiskTier(world.folder, codec).file, ROOM).page_bytes - 64 * 8
        for codec in ("fp32", "fp16", "int8")
    }
    assert page == {"fp32": 64 * 256, "fp16": 64 * 128, "int8": 64 * 64}


# -- ordinary edges -------------------------------------------------------------------------


def test_no_queries_no_hits_and_an_index_without_vectors(folders) -> None:
    world = World(folders(), [30, 0])
    scores, rows, stats = tiers(world, [0]).search(world.queries(0), 5, 2)
    assert scores.shape == rows.shape == (0, 5) and stats.nbytes == 0
    scores, rows, _ = tiers(world, [0]).search(world.queries(2), 0, 2)
    assert rows.shape == (2, 0)
    for sizes in ([0, 0], []):
        hollow = World(Path(folders()), sizes)
        scores, rows, _ = tiers(hollow, []).search(hollow.queries(2), 3, 2)
        assert (rows == -1).all() and np.isneginf(scores).all() and rows.shape == (2, 3)
