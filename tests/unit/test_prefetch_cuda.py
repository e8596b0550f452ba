"""The pair pinned RAM -> CUDA through the same protocols; on the CPU where there is no device."""

import contextlib
import os

import numpy as np
import pytest
import torch
from prefetch_worlds import World

from stages.errors import QuarryError
from stages.serve.prefetch import cuda
from stages.serve.prefetch.cuda import TOLERANCE, CudaTier, PinnedTier
from stages.serve.prefetch.hybrid import HybridIVF
from stages.serve.prefetch.prefetcher import Prefetcher
from stages.serve.prefetch.tiers import DiskTier

ROOM, PATIENCE = 2**24, 20
SIZES = [200, 64, 0, 1, 65, 130, 40, 300]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason="torch finds no CUDA device"
        ),
    ),
]


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "store", SIZES, d=64, codecs=["fp16", "int8"])


def tiers(world: World, device: str, codec="fp32", hot_bytes: int = ROOM):
    cold = PinnedTier(world.folder, codec, device)
    return cold, CudaTier(cold.file, hot_bytes, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("resident", [[], [0, 3, 7], [1, 4], range(8)])
def test_probed_is_faiss_to_the_tolerance_for_any_resident_set(world, device, resident) -> None:
    cold, hot = tiers(world, device)
    hot.put(cold.read(resident).codes)
    hot.finish()
    queries = world.queries(9)
    scores, rows, stats = HybridIVF(cold, hot).search(queries, 10, 3)
    expected, ids = world.faiss(queries, 10, 3)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    gaps = np.abs(np.diff(expected, axis=1)) > 2 * TOLERANCE
    clear = np.c_[gaps, np.zeros(9, bool)] & np.c_[np.ones(9, bool), gaps]
    assert clear.sum() > 50 and (rows == ids)[clear].all()
    assert (stats.hits + stats.misses == 3).all()
    assert len(resident) < 8 or stats.misses.sum() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_short_codes_are_scored_again_and_equal_those_of_the_other_pair(
    world, device, codec
) -> None:
    cold, hot = tiers(world, device, codec)
    hot.put(cold.read([0, 1, 3]).codes)
    hot.finish()
    queries = world.queries(5)
    ours = HybridIVF(cold, hot).search(queries, 10, 4)
    disk = DiskTier(world.folder, codec)
    none = HybridIVF(disk, CudaTier(disk.file, 0, device=device)).search(queries, 10, 4)
    np.testing.assert_allclose(ours[0], none[0], atol=1e-6)
    assert (ours[1] == none[1]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_clusters_come_and_go_in_pages(world, device) -> None:
    cold, hot = tiers(world, device, hot_bytes=6 * 64 * 256)
    assert hot.capacity == 6
    assert hot.put(cold.read([0, 1, 7]).codes) == [0, 1], "4 pages, 1 page, and 5 that do not fit"
    hot.finish()
    assert np.flatnonzero(hot.resident()).tolist() == [0, 1, 2] and hot.free_pages() == 1
    assert hot.put(cold.read([0]).codes) == []
    with hot.held() as held:
        first = held.best(world.queries(1), 3, np.array([[0]]))
        hot.evict([0])
        assert hot.free_pages() == 1, "a search reads them"
        assert (first[1] >= 0).all()
    assert hot.free_pages() == 5 and hot.put(cold.read([7]).codes) == [7]
    hot.finish()
    with hot.held() as held:
        scores, places = held.best(world.vectors[world.lists == 7][:1], 1, np.array([[7]]))
    assert scores[0, 0] == pytest.approx(1, abs=TOLERANCE)
    assert world.lists[cold.file.rows[places[0, 0]]] == 7


@pytest.mark.parametrize("device", DEVICES)
def test_the_prefetcher_works_on_this_pair_as_on_the_other(world, device) -> None:
    cold, hot = tiers(world, device)
    prefetcher, hybrid = Prefetcher(cold, hot), HybridIVF(cold, hot)
    query = world.queries(1)
    handle = prefetcher.start(query, 10**9)
    assert handle.wait(PATIENCE) and not handle.errors
    hot.finish()
    _, _, stats = hybrid.search(query, 5, 4)
    assert stats.misses.tolist() == [0]
    assert prefetcher.trim(0.0).wait(PATIENCE)
    assert np.flatnonzero(hot.resident()).tolist() == [2]
    prefetcher.close()


def test_a_damaged_cluster_is_known_from_loading(world) -> None:
    with (world.folder / "codes.npy").open("r+b") as f:
        f.seek(-1, 2)
        f.write(b"\x77")
    cold = PinnedTier(world.folder, device="cpu")
    batch = cold.read([0, 7])
    assert list(batch.codes) == [0] and "cluster 7" in str(batch.errors[7])


def test_damaged_vectors_behind_short_codes_are_an_error_of_their_cluster(world) -> None:
    with (world.folder / "codes.npy").open("r+b") as f:
        f.seek(-1, 2)
        f.write(b"\x77")
    cold = PinnedTier(world.folder, "fp16", "cpu")
    first = int(cold.file.offsets[7])
    assert list(cold.read([7]).codes) == [7], "its short codes are fine"
    with pytest.raises(QuarryError, match="index 'store', cluster 7: other bytes"):
        cold.read_vectors(np.array([0, first]))
    fine = cold.read_vectors(np.array([0, first - 1]))
    assert (fine == world.vectors[cold.file.rows[[0, first - 1]]]).all()


def test_memory_that_is_refused_leaves_no_file_open(world, monkeypatch) -> None:
    def refuse(*_, **__) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch, "empty", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(QuarryError, match="were refused. Use tier ram"):
        PinnedTier(world.folder, "fp16", "cpu")
    assert len(os.listdir("/proc/self/fd")) == before


def test_pages_that_are_side_by_side_are_one_copy(world, monkeypatch) -> None:
    cold, hot = tiers(world, "cpu")
    copies = []
    real = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda to, *a, **k: copies.append(len(to)) or real(to, *a, **k)
    )
    hot.put(cold.read([0, 7]).codes)
    assert copies == [200, 300]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_pair_is_refused(world) -> None:
    with pytest.raises(QuarryError, match="torch finds no CUDA device. Use tier ram"):
        PinnedTier(world.folder)
    with pytest.raises(QuarryError, match="torch finds no CUDA device"):
        CudaTier(DiskTier(world.folder).file, ROOM)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_group_whose_event_has_not_fired_is_a_miss(world) -> None:
    cold, hot = tiers(world, "cuda")
    with torch.cuda.stream(hot._stream):
        torch.cuda._sleep(2 * 10**9)  # cycles: about a second in front of the copies
    hot.put(cold.read([0]).codes)
    assert not hot.resident()[0]
    hot.finish()
    assert hot.resident()[0]


# -- streams and events where there is no device: doubles that fire when they are told ------------


class FakeStream:
    """Work that was enqueued, in order; done as far as it is told to go, or waited for."""

    def __init__(self) -> None:
        self.work, self.done = [], 0  # callables; how many of them have run

    def run(self, n: int) -> None:
        """Let the device do the next n things."""
        for job in self.work[self.done : self.done + n]:
            job()
        self.done = min(len(self.work), self.done + n)

    def synchronize(self) -> None:
        self.run(len(self.work))


class FakeEvent:
    """Fires when its stream has done all that was enqueued before it was recorded."""

    def record(self, stream: FakeStream) -> None:
        self._stream, self._at = stream, len(stream.work)

    def query(self) -> bool:
        return self._stream.done >= self._at


@pytest.fixture
def device(monkeypatch):
    """The streams of a device that is not there: a copy is done when its stream has come to it."""
    current: list[FakeStream] = []

    @contextlib.contextmanager
    def on(stream: FakeStream):
        current.append(stream)
        yield
        current.pop()

    real = torch.Tensor.copy_

    def copy(to, source, *, non_blocking=False):
        if not current:
            return real(to, source)
        assert non_blocking, "a copy that blocks overlaps with nothing"
        current[-1].work.append(lambda: real(to, source))
        return to

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(cuda, "GROUP", 1)  # an event after every cluster


def streamed(world: World, **how) -> tuple[PinnedTier, CudaTier, FakeStream]:
    """The pair on the CPU, with a stream of its own as on a device."""
    cold, hot = tiers(world, "cpu", **how)
    hot._stream = FakeStream()
    return cold, hot, hot._stream


def test_clusters_whose_event_has_not_fired_are_misses_and_never_read(world, device) -> None:
    """Check 1 with copies under way: unfired groups are zeros, and must not be looked at."""
    cold, hot, stream = streamed(world)
    hybrid = HybridIVF(cold, hot)
    queries = world.queries(9)
    expected, _ = world.faiss(queries, 10, 8)
    assert hot.put(cold.read([0, 3, 7]).codes) == [0, 3, 7]
    for fired, resident in enumerate([[2], [0, 2], [0, 2, 3], [0, 2, 3, 7]]):
        assert np.flatnonzero(hot.resident()).tolist() == resident, f"{fired} events fired"
        scores, _, stats = hybrid.search(queries, 10, 8)
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
        assert stats.hits.tolist() == [len(resident)] * 9
        assert stats.misses.tolist() == [8 - len(resident)] * 9
        stream.run(1)
    assert stream.done == len(stream.work) == 3


def test_one_event_stands_for_a_group_and_fires_behind_the_last_of_it(
    world, device, monkeypatch
) -> None:
    monkeypatch.setattr(cuda, "GROUP", 250 * 64 * 4)  # bytes: clusters 0 and 1, then 7
    cold, hot, stream = streamed(world)
    hot.put(cold.read([0, 1, 7]).codes)
    seen = []
    for _ in stream.work:
        stream.run(1)
        seen.append(np.flatnonzero(hot.resident()).tolist())
    assert seen == [[2], [0, 1, 2], [0, 1, 2, 7]]


def test_a_cluster_on_its_way_is_not_copied_again_and_its_pages_are_taken(world, device) -> None:
    cold, hot, stream = streamed(world, hot_bytes=9 * 64 * 256)
    assert hot.put(cold.read([0]).codes) == [0] and hot.free_pages() == 5
    assert hot.put(cold.read([0, 1]).codes) == [1] and hot.free_pages() == 4
    stream.run(2)
    assert np.flatnonzero(hot.resident()).tolist() == [0, 1, 2]


def test_eviction_waits_for_copies_so_that_none_lands_in_pages_of_another(world, device) -> None:
    cold, hot, stream = streamed(world, hot_bytes=5 * 64 * 256)
    hot.put(cold.read([0]).codes)
    hot.evict([0])
    assert stream.done == 1 and hot.free_pages() == 5
    hot.put(cold.read([7]).codes)
    assert not hot.resident()[7]
    hot.finish()
    with hot.held() as held:
        scores, _ = held.best(world.vectors[world.lists == 7], 1, np.full((300, 1), 7))
    np.testing.assert_allclose(scores, 1, atol=TOLERANCE)


def test_a_window_ends_with_its_copies_enqueued_and_a_search_does_not_wait(world, device) -> None:
    cold, hot, stream = streamed(world)
    prefetcher, hybrid = Prefetcher(cold, hot), HybridIVF(cold, hot)
    query = world.queries(1)
    handle = prefetcher.start(query, 10**9)
    assert handle.wait(PATIENCE) and not handle.errors and stream.work
    first = hybrid.search(query, 5, 8)
    assert first[2].misses.tolist() == [7] and stream.done == 0, "all but the empty cluster"
    stream.synchronize()
    second = hybrid.search(query, 5, 8)
    assert second[2].misses.tolist() == [0]
    np.testing.assert_allclose(second[0], first[0], atol=TOLERANCE)
    prefetcher.close()
