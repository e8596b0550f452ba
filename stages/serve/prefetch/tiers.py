"""Where clusters lie: a slow tier that has all of them, and a fast one with room for some.

Disk -> RAM, the embedded pair: ``DiskTier`` reads clusters of the index directory, ``PagedTier``
keeps them in pages of a fixed size, so that clusters come and go and nothing is ever moved. A
cluster fills whole pages of its own (the last one partly); faiss scans pages as its lists.
``cuda.py`` has the other pair behind the same two protocols.

Lin et al., TeleRAG, arXiv:2502.20969, §3.1 and §3.5. Pages are ours: the official buffer copies the
survivors of an eviction together.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.clusters import Batch, Bytes, ClusterFile, Codec, Floats, Ints, spans_of
from stages.errors import QuarryError
from stages.serve.prefetch.pages import PageTable
from stages.serve.prefetch.scan import Lists

PAGE = 64  # vectors; faiss takes them in groups of up to 16, so whole pages keep its last bits


class Cold(Protocol):
    """The tier that has every cluster."""

    file: ClusterFile  # sizes, offsets, rows and centroids; codes of the tier's codec

    def read(self, clusters: Sequence[int] | Ints) -> Batch:
        """These clusters, verified; those that cannot be read are among the errors."""
        ...

    def read_vectors(self, positions: Ints) -> Floats:
        """(n, d) float32 vectors by their place, ascending; of clusters that were verified once.

        Raises:
            QuarryError: one of their clusters cannot be read, or is damaged.
        """
        ...

    def forget_pages(self) -> None:
        """What the operating system keeps of a disk's bytes is dropped: the tier is slow again."""
        ...

    def close(self) -> None:
        """Reading afterwards fails."""
        ...


class Held(Protocol):
    """What was resident at one moment; it stays so until the ``with`` block ends."""

    resident: npt.NDArray[np.bool_]  # (nlist,); an empty cluster always is

    def best(self, queries: Floats, k: int, clusters: Ints) -> tuple[Floats, Ints]:
        """(q, k) scores and places among the resident ones of ``clusters`` (q, n), -1: none."""
        ...


class Hot(Protocol):
    """The tier that has room for some clusters. One thread puts and evicts; any may search."""

    capacity: int  # pages
    pages_of: Ints  # (nlist,) pages that each cluster needs

    def put(self, codes: dict[int, Bytes]) -> list[int]:
        """Make these clusters resident, at once or soon; those that there was room for."""
        ...

    def finish(self) -> None:
        """Wait until all that was put is resident."""
        ...

    def evict(self, clusters: Sequence[int] | Ints) -> None:
        """No new search finds these; their pages are free once the running ones are done."""
        ...

    def held(self) -> contextlib.AbstractContextManager[Held]:
        """The residents of this moment, for a search."""
        ...

    def resident(self) -> npt.NDArray[np.bool_]:
        """(nlist,) a copy, of this moment."""
        ...

    def free_pages(self) -> int:
        """Pages that a cluster could take now."""
        ...


def open_files(folder: Path, codec: Codec) -> tuple[ClusterFile, ClusterFile]:
    """The codes of an index, and its float32 vectors; the same file where the codec is fp32."""
    file = ClusterFile(folder, codec)
    try:
        return file, file if codec == "fp32" else ClusterFile(folder)
    except BaseException:
        file.close()
        raise


class DiskTier:
    """Clusters in the files of an index directory."""

    def __init__(self, folder: Path, codec: Codec = "fp32") -> None:
        """
        Raises:
            QuarryError: the index is damaged; nothing stays open.
        """
        self.file, self._exact = open_files(folder, codec)

    def read(self, clusters: Sequence[int] | Ints) -> Batch:
        """See ``Cold``."""
        return self.file.read(clusters)

    def read_vectors(self, positions: Ints) -> Floats:
        """See ``Cold``."""
        return self._exact.read_positions(positions).view(np.float32)

    def forget_pages(self) -> None:
        """See ``Cold``."""
        for file in {self.file, self._exact}:
            file.forget_pages()

    def close(self) -> None:
        """See ``Cold``."""
        for file in {self.file, self._exact}:
            file.close()


class Throttle:
    """A cold tier that is as slow as it is told to be, whatever the page cache holds.

    One device: reads of several threads share ``bandwidth_Bps`` in the order in which they came,
    and each span of neighbours waits ``latency_s`` more, besides others' latencies.
    """

    def __init__(
        self,
        cold: Cold,
        bandwidth_Bps: float,
        latency_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bandwidth_Bps <= 0 or latency_s < 0:
            raise QuarryError(
                f"throttle: a bandwidth of {bandwidth_Bps} B/s and a latency of {latency_s} s; "
                f"the first must be above 0, the second 0 or more."
            )
        self.file, self._cold = cold.file, cold
        self._bandwidth, self._latency = bandwidth_Bps, latency_s
        self._clock, self._sleep = clock, sleep
        self._lock, self._free = threading.Lock(), 0.0

    def read(self, clusters: Sequence[int] | Ints) -> Batch:
        """See ``Cold``."""
        came = self._clock()
        batch = self._cold.read(clusters)
        self._wait(came, batch.nbytes, batch.n_reads)
        return batch

    def read_vectors(self, positions: Ints) -> Floats:
        """See ``Cold``."""
        came = self._clock()
        vectors = self._cold.read_vectors(positions)
        self._wait(came, vectors.nbytes, len(spans_of(positions)))
        return vectors

    def forget_pages(self) -> None:
        """See ``Cold``."""
        self._cold.forget_pages()

    def _wait(self, came: float, nbytes: int, n_reads: int) -> None:
        with self._lock:
            self._free = max(self._free, came) + nbytes / self._bandwidth
            due = self._free + self._latency * n_reads
        if (left := due - self._clock()) > 0:
            self._sleep(left)

    def close(self) -> None:
        """See ``Cold``."""
        self._cold.close()


class PagedTier:
    """Clusters in fixed-size pages of memory, all of it allocated at the start."""

    def __init__(self, file: ClusterFile, hot_bytes: int, *, page: int = PAGE) -> None:
        """At most ``hot_bytes``, and no more than all clusters need; fewer than a page is nothing.

        Raises:
            QuarryError: the memory is not there.
        """
        self._file, self._page = file, page
        self.pages_of: Ints = -(-file.sizes // page)
        self.page_bytes = page * (file.code_bytes + 8)  # codes, and an id for each
        self.capacity = int(min(max(0, hot_bytes) // self.page_bytes, self.pages_of.sum()))
        nbytes = self.capacity * self.page_bytes
        if nbytes > (there := available_bytes()):
            raise _refused(file.name, nbytes, f"{there:,} are free")
        try:
            self._lists = Lists(file.codec, file.dim, self.capacity, file.scale)
            self._lists.reserve(self.capacity, page)
        except MemoryError as e:
            raise _refused(file.name, nbytes, "the system refused") from e
        self._pages = PageTable(self.pages_of, self.capacity)

    def put(self, codes: dict[int, Bytes]) -> list[int]:
        """See ``Hot``. All of them appear at once, when the last one is complete."""
        placed: dict[int, list[int]] = {}
        for cluster, block in codes.items():
            if self._pages.table[cluster, 0] >= 0:
                continue
            if (pages := self._pages.take(cluster)) is None:
                continue
            start = int(self._file.offsets[cluster])
            for i, page in enumerate(pages):
                part = block[i * self._page : (i + 1) * self._page]
                self._lists.fill(page, part, np.arange(start, start + len(part)))
                start += len(part)
            placed[cluster] = pages
        self._pages.publish(placed)
        return list(placed)

    def finish(self) -> None:
        """See ``Hot``: ``put`` comes back when its clusters are there."""

    def evict(self, clusters: Sequence[int] | Ints) -> None:
        """See ``Hot``."""
        self._pages.evict(clusters)

    def free_pages(self) -> int:
        """See ``Hot``."""
        return self._pages.n_free()

    def resident(self) -> npt.NDArray[np.bool_]:
        """See ``Hot``."""
        return (self._pages.table[:, 0] >= 0) | (self._file.sizes == 0)

    @contextlib.contextmanager
    def held(self) -> Iterator["_HeldPages"]:
        """See ``Hot``."""
        ticket, table = self._pages.enter()
        try:
            yield _HeldPages(self._lists, table, self._file)
        finally:
            self._pages.leave(ticket)


class _HeldPages(NamedTuple):
    """``Held`` over pages."""

    lists: Lists
    table: Ints  # (nlist, most pages of a cluster), -1: none
    file: ClusterFile

    @property
    def resident(self) -> npt.NDArray[np.bool_]:
        return (self.table[:, 0] >= 0) | (self.file.sizes == 0)

    def best(self, queries: Floats, k: int, clusters: Ints) -> tuple[Floats, Ints]:
        """See ``Held``."""
        pages = self.table[clusters]  # (q, n, most)
        pages[clusters < 0] = -1
        lists = pages.reshape(len(clusters), clusters.shape[1] * pages.shape[2])
        return self.lists.best(queries, k, lists, self.file.rows)


def available_bytes() -> int:
    """Memory that can be had without swapping: the system's, or what the container leaves."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    free = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and (most := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, int(most) - int(used.read_text(encoding="ascii")))
    return free


def _refused(name: str, nbytes: int, why: str) -> QuarryError:
    return QuarryError(
        f"index '{name}': the hot tier needs {nbytes:,} bytes and {why}. Give it fewer hot_bytes."
    )
