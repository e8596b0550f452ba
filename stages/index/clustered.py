"""An inverted file whose clusters lie one after another on the disk: what prefetching reads.

The same results as ``ivf`` with the same centroids and ``nprobe``; ``retriever`` holds all of it in
memory (loaded at the first search). The serve room reads it cluster by cluster instead, and fetches
the next ones while the language model generates.

Lin et al., TeleRAG, arXiv:2502.20969, §3.1 of the layout.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from stages.clusters import (
    SUFFIX,
    Floats,
    Ints,
    checksums,
    lay_out,
    nearest_clusters,
    seal,
    why_damaged,
)
from stages.encoder import encode_queries
from stages.errors import QuarryError
from stages.index import Inputs
from stages.index.embedding import embed_passages, encoder_of
from stages.index.layout import Contents, Index, KindParams, Slot
from stages.index.lists import assign, inverted_file, read_centroids
from stages.index.ranking import as_hits
from stages.index.vectors import search_vectors
from stages.types import Hits, Query


class Params(KindParams):
    """An entry of kind clustered."""

    kind: Literal["clustered"]
    corpus: Slot  # an entry of ingest
    model: Slot  # an entry of finetune: a dense encoder
    centroids: Slot  # an entry of index, of kind centroids, made with the same model
    triples: Literal["none"] = "none"
    nprobe: int = Field(ge=1)  # clusters that a query looks into
    codes: list[Literal["fp16", "int8"]] = Field([])  # kept beside the vectors: fewer bytes to move
    max_tokens: int = Field(128, ge=8)  # of a text; the rest is not read
    threads: int = Field(1, ge=1)  # of the encoder and of faiss


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The vectors by cluster, where each cluster starts, and a checksum for each and for all."""
    made = embed_passages(
        passages, inputs, "dense", max_tokens=params.max_tokens, threads=params.threads
    )
    centroids = read_centroids(inputs.centroids, made, params.corpus)
    lists = assign(made.vectors, centroids, threads=params.threads)
    facts = {**made.facts, "centroids": len(centroids)}
    arrays = cluster_arrays(made.vectors, lists, centroids, params.codes)
    return Contents(made.docids, arrays, {}, {"nprobe": params.nprobe}, made.encoder, facts)


def cluster_arrays(
    vectors: Floats, lists: npt.NDArray[np.int32], centroids: Floats, codecs: Sequence[str] = ()
) -> dict[str, npt.NDArray]:
    """The arrays of ``stages.clusters``: (n, d) vectors that are in these lists."""
    rows, offsets = lay_out(lists, len(centroids))
    codes = vectors[rows]
    arrays = {"codes": codes, "rows": rows, "offsets": offsets, "centroids": centroids}
    arrays["checks"] = checksums(codes, rows, offsets)
    if "int8" in codecs:
        arrays["scale_int8"] = int8_scale(codes)
    for codec in codecs:
        short = codes.astype("<f2") if codec == "fp16" else as_int8(codes, arrays["scale_int8"])
        arrays[f"codes{SUFFIX[codec]}"] = short
        arrays[f"checks{SUFFIX[codec]}"] = checksums(short, rows, offsets)
    arrays["seal"] = seal(arrays)
    return arrays


def int8_scale(vectors: Floats) -> Floats:
    """(2, d) smallest value and range of each component; zeros without vectors."""
    if not len(vectors):
        return np.zeros((2, vectors.shape[1]), dtype=np.float32)
    low = vectors.min(0)
    return np.stack([low, vectors.max(0) - low])


def as_int8(vectors: Floats, scale: Floats) -> npt.NDArray[np.uint8]:
    """(n, d) codes of faiss's QT_8bit: floor(255 · (x - low) / range); 0 where the range is 0."""
    low, width = scale
    part = np.divide(vectors - low, width, out=np.zeros_like(vectors), where=width > 0)
    return (255 * part.clip(0, 1)).astype(np.uint8)


class ClusteredRetriever:
    """A ``Retriever``, and the parts of the index (``stages.clusters.Clustered``)."""

    def __init__(self, index: Index, encoder: Path | None) -> None:
        """
        Raises:
            QuarryError: an array is missing, or is not the one that was written.
        """
        if why := why_damaged(index.arrays):
            name = index.path.name
            raise QuarryError(f"index '{name}': {why}. Rebuild it with: dvc repro -f index@{name}")
        self.folder, self.fingerprint = index.path, index.fingerprint
        self.encoder = encoder_of(index, encoder)
        self.docids = np.array(index.docids, dtype=object)
        self._codes, self._rows, self._offsets = (
            index.arrays[name] for name in ("codes", "rows", "offsets")
        )
        self._centroids = np.asarray(index.arrays["centroids"])
        self.nprobe = min(index.settings["nprobe"], len(self._centroids))

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """Up to k hits per query, best first; equal scores by docid descending."""
        vectors = encode_queries(self.encoder, queries)
        faiss.omp_set_num_threads(self.encoder.model.threads)
        return as_hits(search_vectors(vectors, self._by_row, k, self._propose), self.docids)

    def _propose(self, queries: Floats, m: int) -> tuple[Floats, Ints]:
        probed = nearest_clusters(queries, self._centroids, self.nprobe)
        return self._ivf.search_preassigned(queries, m, probed, None)

    @cached_property
    def _by_row(self) -> "_ByRow":
        return _ByRow(self._codes, self._rows)

    @cached_property
    def _ivf(self) -> faiss.IndexIVFFlat:
        lists = np.repeat(np.arange(len(self._centroids)), np.diff(self._offsets))
        ivf = inverted_file(self._codes, self._centroids, lists, self._rows)
        ivf.nprobe = self.nprobe
        return ivf


class _ByRow:
    """The vectors in the order of docids, read where they lie."""

    def __init__(self, codes: Floats, rows: Ints) -> None:
        self._codes, self._place = codes, np.argsort(rows)

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: Ints) -> Floats:
        return self._codes[self._place[rows]]


def retriever(index: Index, encoder: Path | None) -> ClusteredRetriever:
    """The index, searched with the encoder that made it."""
    return ClusteredRetriever(index, encoder)
