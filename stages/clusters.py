"""The layout in which an inverted file lies cluster after cluster, and its reader.

``codes.npy`` holds the vectors of cluster 0, then those of cluster 1 and so on, ``rows.npy`` the
row of each among the index's docids (ascending within a cluster, so by docid descending),
``offsets.npy`` where each cluster starts, ``checks.npy`` a checksum for each, ``seal.npy`` one over
all arrays but the codes. One cluster is one read from the disk; clusters with neighbouring numbers
are one read together. Only the codes stay on the disk: the rows take 8 bytes a vector, beside the
docids that are in memory anyway.

Codes are kept once more in ``codes_fp16.npy`` or ``codes_int8.npy`` where the entry says so: half
or a quarter of the bytes to move. Those are faiss's codes (QT_fp16, QT_8bit), byte for byte.

Sivic & Zisserman, Video Google, ICCV 2003; the flat layout: Lin et al., TeleRAG, arXiv:2502.20969.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from stages.errors import QuarryError
from stages.types import Encoder

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Codec = Literal["fp32", "fp16", "int8"]

WIDTH: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes of a component
CODES = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("u1")}
SUFFIX: dict[str, str] = {"fp32": "", "fp16": "_fp16", "int8": "_int8"}
_FORMS = {  # of arrays by the first word of their names: type of the numbers, dimensions
    "centroids": ("<f4", 2), "rows": ("<i8", 1), "offsets": ("<i8", 1), "checks": ("<u8", 1),
    "scale": ("<f4", 2), "seal": ("<u8", 1),
}  # fmt: skip


class Batch(NamedTuple):
    """Clusters as they were read: (size, code bytes) each, and what went wrong with others."""

    codes: dict[int, Bytes]
    errors: dict[int, QuarryError]
    nbytes: int
    n_reads: int  # clusters side by side are one


@runtime_checkable
class Clustered(Protocol):
    """What ``open_index`` gives for an index of kind ``clustered``: its parts, beside a search."""

    folder: Path
    encoder: Encoder
    docids: npt.NDArray[np.object_]
    nprobe: int
    fingerprint: str


def lay_out(lists: npt.NDArray[np.integer], nlist: int) -> tuple[Ints, Ints]:
    """(rows (n,), offsets (nlist + 1,)) of vectors that are in these lists (n,)."""
    rows = np.argsort(lists, kind="stable").astype(np.int64)
    return rows, np.searchsorted(lists[rows], np.arange(nlist + 1)).astype(np.int64)


def checksums(codes: npt.NDArray, rows: Ints, offsets: Ints) -> npt.NDArray[np.uint64]:
    """(nlist,) BLAKE2b-64 over the bytes of a cluster's codes, then of its rows."""
    spans = pairwise(offsets.tolist())
    return np.array([_check(codes[a:b], rows[a:b]) for a, b in spans], dtype=np.uint64)


def _check(codes: npt.NDArray, rows: Ints) -> int:
    h = hashlib.blake2b(np.ascontiguousarray(codes), digest_size=8)
    h.update(np.ascontiguousarray(rows))
    return int.from_bytes(h.digest(), "little")


def seal(arrays: Mapping[str, npt.NDArray]) -> npt.NDArray[np.uint64]:
    """(1,) BLAKE2b-64 over name, type, shape and bytes of a layout's arrays, codes aside."""
    h = hashlib.blake2b(digest_size=8)
    for name in sorted(arrays):
        if name == "seal" or name.partition("_")[0] not in _FORMS:
            continue
        array = np.ascontiguousarray(arrays[name])
        h.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        h.update(array)
    return np.array([int.from_bytes(h.digest(), "little")], dtype=np.uint64)


def why_damaged(arrays: Mapping[str, npt.NDArray]) -> str:
    """What is wrong with the arrays of a layout, codes aside; nothing: they fit and are sealed."""
    for name in ("centroids", "rows", "offsets", "checks"):
        if name not in arrays:
            return f"it has no {name}.npy"
    for name, array in arrays.items():
        form = _FORMS.get(name.partition("_")[0])
        if form and (array.dtype.str, array.ndim) != form:
            return f"{name}.npy has numbers of type {array.dtype} in shape {array.shape}"
    offsets, n, (nlist, d) = arrays["offsets"], len(arrays["rows"]), arrays["centroids"].shape
    checks = [len(array) for name, array in arrays.items() if name.startswith("checks")]
    if not len(offsets) - 1 == nlist == min(checks) == max(checks):
        return "its arrays are of different lengths"
    if offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        return f"offsets.npy does not rise from 0 to {n}"
    if "scale_int8" in arrays and arrays["scale_int8"].shape != (2, d):
        return f"scale_int8.npy is not two rows of {d}"
    if "seal" not in arrays:
        return "it has no seal.npy, so it was built before there was one"
    if arrays["seal"].tolist() != seal(arrays).tolist():
        return "centroids, rows, offsets, scale or checks are not as they were written (seal.npy)"
    return ""


def nearest_clusters(queries: Floats, centroids: Floats, n: int) -> Ints:
    """(q, min(n, nlist)) clusters by inner product with the centroid, best first, then by number.

    Queries are taken one by one: in a matrix product the last bits of a score, and so the choice
    between two clusters, would depend on the queries beside.
    """
    n = min(n, len(centroids))
    found = np.empty((len(queries), n), dtype=np.int64)
    if not n:
        return found
    for i, query in enumerate(queries):
        scores = centroids @ query
        cut = np.partition(scores, len(scores) - n)[len(scores) - n]
        near = np.flatnonzero(scores >= cut)
        found[i] = near[np.argsort(-scores[near], kind="stable")][:n]
    return found


class ClusterFile:
    """Reads clusters of an index directory; any number of threads may read at once.

    ``sizes`` (nlist,) vectors in each cluster, ``rows`` (N,) and ``centroids`` (nlist, d) are in
    memory. ``code_bytes``: bytes of one vector's code.
    """

    def __init__(self, folder: Path, codec: Codec = "fp32") -> None:
        """
        Raises:
            QuarryError: a file is missing, cut short, does not fit the others, or is not sealed.
        """
        self.name, self.codec, self._path = folder.name, codec, folder / f"codes{SUFFIX[codec]}.npy"
        self._fd: int | None = None
        if not self._path.exists() and (folder / "codes.npy").exists():
            raise QuarryError(
                f"index '{self.name}' has no {codec} codes. Add codes: [{codec}] to its entry and "
                f"build it again: dvc repro index@{self.name}"
            )
        try:
            arrays = read_small(folder)
            self.offsets, self.rows, self.centroids, self._checks = (
                arrays[name] for name in ("offsets", "rows", "centroids", f"checks{SUFFIX[codec]}")
            )
            self.scale = arrays["scale_int8"] if codec == "int8" else None
            with self._path.open("rb") as f:
                self._start, shape, dtype = _read_header(f)
        except KeyError as e:
            raise self._damaged(f"it has no {e.args[0]}.npy") from e
        except (OSError, EOFError, ValueError) as e:
            raise self._damaged(f"{e!r}") from e
        if why := why_damaged(arrays):
            raise self._damaged(why)
        n, self.dim = len(self.rows), self.centroids.shape[1]
        self.code_bytes = self.dim * WIDTH[codec]
        self.sizes: Ints = np.diff(self.offsets)
        self.nbytes: Ints = self.sizes * self.code_bytes  # (nlist,)
        if (shape, dtype) != ((n, self.dim), CODES[codec]):
            raise self._damaged(
                f"{self._path.name} has {dtype} in shape {shape}, not {CODES[codec]} in "
                f"{(n, self.dim)}"
            )
        if self._path.stat().st_size < self._start + n * self.code_bytes:
            raise self._damaged(f"{self._path.name} is cut short")
        self._verified = np.zeros(len(self.sizes), dtype=bool)  # had the right bytes when last read
        self._fd = os.open(self._path, os.O_RDONLY)

    def read(self, clusters: Sequence[int] | Ints) -> Batch:
        """These clusters, each once, with their checksums verified.

        A cluster that cannot be read, or has other bytes than were written, is among the errors;
        the others are returned all the same.
        """
        codes: dict[int, Bytes] = {}
        errors: dict[int, QuarryError] = {}
        nbytes = n_reads = 0
        for span in spans_of(clusters):
            parts = [span]
            while parts:
                part = parts.pop()
                a, b = (int(self.offsets[c]) for c in (part[0], part[-1] + 1))
                n_reads += a < b
                try:
                    block = self._pread(a, b)
                except OSError as e:
                    if len(part) > 1:  # which of them is it?
                        parts += [[c] for c in part]
                    else:
                        errors[part[0]] = self._damaged(str(e), part[0])
                    continue
                nbytes += block.nbytes
                for c in part:
                    own = slice(int(self.offsets[c]) - a, int(self.offsets[c + 1]) - a)
                    rows = self.rows[self.offsets[c] : self.offsets[c + 1]]
                    if _check(block[own], rows) == int(self._checks[c]):
                        codes[c], self._verified[c] = block[own], True
                    else:
                        errors[c] = self._damaged("other bytes than were written (checksum)", c)
        return Batch(codes, errors, nbytes, n_reads)

    def read_positions(self, positions: Ints) -> Bytes:
        """(n, code bytes): single vectors by their place in the file, ascending.

        A cluster of which nothing was read before is read as a whole first, to verify it.

        Raises:
            QuarryError: one of their clusters cannot be read, or has other bytes than were written.
        """
        clusters = np.unique(self.clusters_of(positions))
        for cluster in clusters[~self._verified[clusters]].tolist():  # one in memory at a time
            for error in self.read([cluster]).errors.values():
                raise error
        out = np.empty((len(positions), self.code_bytes), dtype=np.uint8)
        done = 0
        for span in spans_of(positions):
            try:
                out[done : done + len(span)] = self._pread(span[0], span[-1] + 1)
            except OSError as e:
                raise self._damaged(str(e), int(self.clusters_of(span[:1])[0])) from e
            done += len(span)
        return out

    def clusters_of(self, positions: Sequence[int] | Ints) -> Ints:
        """(n,) the cluster in which each place of the file is."""
        return np.searchsorted(self.offsets, positions, "right") - 1

    def forget_pages(self) -> None:
        """Ask the operating system to drop what it has cached of the codes."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Reading afterwards fails."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _pread(self, a: int, b: int) -> Bytes:
        """Vectors a to b; an OSError where there are fewer."""
        if self._fd is None:
            raise OSError("the index was closed")
        block = np.empty((b - a, self.code_bytes), dtype=np.uint8)
        left = memoryview(block).cast("B") if block.size else memoryview(b"")
        at = self._start + a * self.code_bytes
        while left:  # one call gives 2 GiB at the most
            got = os.preadv(self._fd, [left], at)
            if got == 0:
                raise OSError(f"{self._path.name} ends before byte {at + len(left)}")
            left, at = left[got:], at + got
        return block

    def _damaged(self, why: str, cluster: int | None = None) -> QuarryError:
        where = f"index '{self.name}'" + ("" if cluster is None else f", cluster {cluster}")
        return QuarryError(f"{where}: {why}. Rebuild it with: dvc repro -f index@{self.name}")


def spans_of(numbers: Sequence[int] | Ints) -> list[list[int]]:
    """Distinct numbers in order, those that follow each other together."""
    ordered = np.unique(np.asarray(numbers, dtype=np.int64))
    cuts = np.flatnonzero(np.diff(ordered) != 1) + 1
    return [part.tolist() for part in np.split(ordered, cuts) if len(part)]


def read_small(folder: Path) -> dict[str, npt.NDArray]:
    """All arrays of a layout but the codes, in memory.

    Raises:
        OSError, EOFError, ValueError: one of them cannot be read.
    """
    names = [f.stem for f in folder.glob("*.npy") if f.stem.partition("_")[0] in _FORMS]
    return {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}


def _read_header(f) -> tuple[int, tuple[int, ...], np.dtype]:
    """(where the data of an .npy file start, their shape and type)."""
    version = np.lib.format.read_magic(f)
    if version != (1, 0):
        raise ValueError(f"an .npy of version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(f)
    if fortran or len(shape) != 2:
        raise ValueError(f"codes of shape {shape}")
    return f.tell(), shape, dtype
