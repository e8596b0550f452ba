"""Pinned RAM -> CUDA: the same two protocols as ``tiers.py``, for a machine with a GPU.

``PinnedTier`` holds all codes in page-locked memory, where a copy to the device is asynchronous.
``CudaTier`` holds pages on the device. Copies are enqueued on a stream of their own, with an event
for every group; a cluster is resident once the event behind its group has fired, and no search
waits for one. Resident clusters are scored by a matrix product, so scores differ from faiss's in
their last bits (1e-5 for unit vectors) and so do ids between scores closer than that.

``device="cpu"`` runs the same code without streams: that is how it is tested where there is no GPU.

Lin et al., TeleRAG, arXiv:2502.20969, §4; events per group are ours, the official code waits for
the whole stream.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stages.clusters import Batch, Bytes, ClusterFile, Codec, Floats, Ints, spans_of
from stages.errors import QuarryError
from stages.serve.prefetch.pages import PageTable
from stages.serve.prefetch.scan import k_best
from stages.serve.prefetch.tiers import PAGE, open_files

GROUP = 2**26  # bytes between two events
TOLERANCE = 1e-5  # of a score, unit vectors

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.uint8}


class PinnedTier:
    """All codes in page-locked memory; each cluster was verified when it was loaded."""

    def __init__(self, folder: Path, codec: Codec = "fp32", device: str = "cuda") -> None:
        """
        Raises:
            QuarryError: there is no such device, the index is damaged, or the memory is not there.
        """
        _require(device)
        self.file, self._exact = open_files(folder, codec)
        try:
            self._codes, self._errors = _load(self.file, pin=device != "cpu")
            self._vectors, self._exact_errors = self._codes, self._errors
            if codec != "fp32":
                self._vectors, self._exact_errors = _load(self._exact, pin=False)
        except BaseException:
            self.close()
            raise

    def read(self, clusters: Sequence[int] | Ints) -> Batch:
        """See ``Cold``: views of the table, nothing is copied."""
        spans, offsets = spans_of(clusters), self.file.offsets
        wanted = [c for span in spans for c in span]
        errors = {c: self._errors[c] for c in wanted if c in self._errors}
        codes = {
            c: self._codes[offsets[c] : offsets[c + 1]].numpy() for c in wanted if c not in errors
        }
        return Batch(codes, errors, sum(block.nbytes for block in codes.values()), len(spans))

    def read_vectors(self, positions: Ints) -> Floats:
        """See ``Cold``."""
        if self._exact_errors:
            for cluster in np.unique(self._exact.clusters_of(positions)).tolist():
                if cluster in self._exact_errors:
                    raise self._exact_errors[cluster]
        return self._vectors.numpy()[positions].view(np.float32)

    def forget_pages(self) -> None:
        """See ``Cold``: nothing of this tier is on a disk."""

    def close(self) -> None:
        """See ``Cold``."""
        for file in {self.file, self._exact}:
            file.close()


class CudaTier:
    """Clusters in pages on a device; one thread puts and evicts, any thread searches."""

    def __init__(
        self, file: ClusterFile, hot_bytes: int, *, device: str = "cuda", page: int = PAGE
    ) -> None:
        """
        Raises:
            QuarryError: there is no such device, or it has not so much memory.
        """
        _require(device)
        self._file, self._page, self._device = file, page, torch.device(device)
        self.pages_of: Ints = -(-file.sizes // page)
        self.page_bytes = page * file.code_bytes
        self.capacity = int(min(max(0, hot_bytes) // self.page_bytes, self.pages_of.sum()))
        shape = (self.capacity * page, file.code_bytes)
        try:
            self._buffer = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        except (torch.OutOfMemoryError, RuntimeError) as e:
            raise QuarryError(
                f"index '{file.name}': the hot tier needs {self.capacity * self.page_bytes:,} "
                f"bytes of {device} memory and was refused. Give it fewer hot_bytes."
            ) from e
        # Of each page: the place of its first vector, and how many it has.
        self._starts = np.zeros(self.capacity, dtype=np.int64)
        self._counts = np.zeros(self.capacity, dtype=np.int64)
        self._pages = PageTable(self.pages_of, self.capacity)
        cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if cuda else None
        self._lock = threading.Lock()
        self._copying: list[tuple[torch.cuda.Event, dict[int, list[int]]]] = []
        if cuda:  # the zeros are written on the stream of this thread
            torch.cuda.synchronize(self._device)

    def put(self, codes: dict[int, Bytes]) -> list[int]:
        """See ``Hot``: enqueues the copies and returns."""
        with self._lock:
            here = {c for _, placed in self._copying for c in placed}
            here |= set(np.flatnonzero(self._pages.table[:, 0] >= 0).tolist())
        placed: dict[int, list[int]] = {}
        group: dict[int, list[int]] = {}
        nbytes = 0
        for cluster, block in codes.items():
            if cluster in here or (pages := self._pages.take(cluster)) is None:
                continue
            self._copy(cluster, pages, block)
            placed[cluster] = group[cluster] = pages
            nbytes += block.nbytes
            if nbytes >= GROUP:
                self._mark(group)
                group, nbytes = {}, 0
        self._mark(group)
        return list(placed)

    def _copy(self, cluster: int, pages: list[int], block: Bytes) -> None:
        """Pages side by side take one copy."""
        start = int(self._file.offsets[cluster])
        sizes = np.minimum(self._page, len(block) - self._page * np.arange(len(pages)))
        self._starts[pages] = start + self._page * np.arange(len(pages))
        self._counts[pages] = sizes
        if not len(pages):
            return
        source = torch.from_numpy(block)
        cuts = np.flatnonzero(np.diff(pages) != 1) + 1
        with self._on_stream():
            for run in np.split(np.arange(len(pages)), cuts):
                a, b = run[0] * self._page, min(len(block), (run[-1] + 1) * self._page)
                to = pages[run[0]] * self._page
                self._buffer[to : to + b - a].copy_(source[a:b], non_blocking=True)

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def _mark(self, group: dict[int, list[int]]) -> None:
        """These become resident when all copies so far are done."""
        if self._stream is None:
            self._pages.publish(group)
        elif group:
            event = torch.cuda.Event()
            event.record(self._stream)
            with self._lock:
                self._copying.append((event, group))

    def _settle(self) -> None:
        """Publish the groups whose event has fired."""
        with self._lock:
            while self._copying and self._copying[0][0].query():
                self._pages.publish(self._copying.pop(0)[1])

    def finish(self) -> None:
        """See ``Hot``."""
        if self._stream is not None:
            self._stream.synchronize()
            self._settle()

    def evict(self, clusters: Sequence[int] | Ints) -> None:
        """See ``Hot``."""
        self.finish()  # in the copying thread: what is on its way may be among them
        with self._lock:
            self._pages.evict(clusters)

    def free_pages(self) -> int:
        """See ``Hot``."""
        return self._pages.n_free()

    def resident(self) -> npt.NDArray[np.bool_]:
        """See ``Hot``."""
        self._settle()
        return (self._pages.table[:, 0] >= 0) | (self._file.sizes == 0)

    @contextlib.contextmanager
    def held(self) -> Iterator["_HeldOnDevice"]:
        """See ``Hot``. The results of a search are on the host before it ends."""
        self._settle()
        ticket, table = self._pages.enter()
        try:
            yield _HeldOnDevice(self, table, self._file)
        finally:
            self._pages.leave(ticket)

    def score(self, queries: Floats, pages: Ints) -> torch.Tensor:
        """(q, pages * page) inner products with all places of these pages, on the device."""
        file = self._file
        blocks = self._buffer.view(self.capacity, self._page, file.code_bytes)
        chosen = blocks[torch.from_numpy(pages).to(self._device)]
        codes = chosen.view(len(pages) * self._page, file.code_bytes).view(_TYPES[file.codec])
        weights, shift = queries, np.zeros(len(queries), dtype=np.float32)
        if file.scale is not None:  # QT_8bit: low + (code + 0.5) / 255 · range
            low, width = file.scale
            weights, shift = queries * (width / 255), queries @ (low + width * (0.5 / 255))
        asked, shift = (torch.from_numpy(a).to(self._device) for a in (weights, shift))
        return asked @ codes.to(torch.float32).T + shift[:, None]

    @property
    def device(self) -> torch.device:
        """Where the pages are."""
        return self._device

    def places(self, pages: Ints) -> Ints:
        """(pages, page) where in the file each place of these pages comes from, -1: nowhere."""
        within = np.arange(self._page)
        there = within < self._counts[pages, None]
        return np.where(there, self._starts[pages, None] + within, -1)


class _HeldOnDevice(NamedTuple):
    """``Held`` over pages on a device."""

    tier: CudaTier
    table: Ints
    file: ClusterFile

    @property
    def resident(self) -> npt.NDArray[np.bool_]:
        return (self.table[:, 0] >= 0) | (self.file.sizes == 0)

    def best(self, queries: Floats, k: int, clusters: Ints) -> tuple[Floats, Ints]:
        """See ``Held``; where the cut goes through equal scores any of them may be kept."""
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        wanted = self.table[clusters]
        wanted[clusters < 0] = -1
        pages = np.unique(wanted[wanted >= 0])
        if not len(pages) or not k:
            return scores, np.full((len(queries), k), -1)
        places = self.tier.places(pages)  # (p, page)
        asks = np.zeros((len(queries), self.table.max() + 2), dtype=bool)
        asks[np.arange(len(queries))[:, None], wanted.reshape(len(queries), -1)] = True
        masked = asks[:, pages, None] & (places >= 0)  # (q, p, page)
        device = self.tier.device
        found = self.tier.score(np.ascontiguousarray(queries), pages)
        outside = torch.from_numpy(~masked.reshape(len(queries), -1)).to(device)
        found.masked_fill_(outside, -torch.inf)
        best, at = torch.topk(found, min(k, found.shape[1]))
        best, at = best.cpu().numpy(), places.reshape(-1)[at.cpu().numpy()]
        return k_best(best, np.where(np.isneginf(best), -1, at), k, self.file.rows)


def _load(file: ClusterFile, *, pin: bool) -> tuple[torch.Tensor, dict[int, QuarryError]]:
    """(N, code bytes) all codes, and why clusters cannot be read; their rows mean nothing."""
    try:
        table = torch.empty((len(file.rows), file.code_bytes), dtype=torch.uint8, pin_memory=pin)
    except RuntimeError as e:
        raise QuarryError(
            f"index '{file.name}': {len(file.rows) * file.code_bytes:,} bytes of page-locked "
            f"memory were refused. Use tier ram."
        ) from e
    errors: dict[int, QuarryError] = {}
    for cluster in range(len(file.sizes)):
        batch = file.read([cluster])
        errors |= batch.errors
        for c, block in batch.codes.items():
            table[file.offsets[c] : file.offsets[c + 1]] = torch.from_numpy(block)
    return table, errors


def _require(device: str) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        raise QuarryError("prefetch: tier cuda, and torch finds no CUDA device. Use tier ram.")
