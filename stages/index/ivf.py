"""Dense retrieval in an inverted file: only the lists of the nearest centroids are scored (faiss).

Within the lists that a query probes the result is exact, ties included; with nprobe = nlist it is
that of ``flat``. Lists are chosen one query at a time: in a batch, last bits could choose others.

Sivic & Zisserman, Video Google, ICCV 2003; Johnson, Douze & Jégou, arXiv:1702.08734.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from stages.encoder import encode_queries
from stages.errors import QuarryError
from stages.index import Inputs
from stages.index.embedding import embed_passages, encoder_of
from stages.index.layout import Contents, Index, Slot, read_index
from stages.index.ranking import as_hits, top_k
from stages.index.vectors import Floats, search_vectors
from stages.params import Entry
from stages.types import Hits, Query


class Params(Entry):
    """An entry of kind ivf."""

    kind: Literal["ivf"]
    corpus: Slot  # an entry of ingest
    model: Slot  # an entry of finetune: a dense encoder
    centroids: Slot  # an entry of index, of kind centroids, made with the same model
    nprobe: int = Field(ge=1)  # lists that a query looks into
    max_tokens: int = Field(128, ge=8)  # of a text; the rest is not read
    threads: int = Field(1, ge=1)  # of torch and faiss; another number, other last bits


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The vectors, the centroids, and for each vector the list that it is in."""
    made = embed_passages(
        passages, inputs, "dense", max_tokens=params.max_tokens, threads=params.threads
    )
    centroids = read_centroids(inputs.centroids, made.encoder)
    if made.docids and not len(centroids):
        raise QuarryError(
            f"index '{inputs.centroids.name}' holds no centroids: its corpus is empty, and the "
            f"corpus '{params.corpus}' is not. Name a corpus with passages in its entry."
        )
    faiss.omp_set_num_threads(params.threads)
    arrays = {
        "vectors": made.vectors, "centroids": centroids, "lists": assign(made.vectors, centroids),
    }  # fmt: skip
    settings = {"nprobe": params.nprobe}
    facts = {**made.facts, "centroids": len(centroids)}
    return Contents(made.docids, arrays, {}, settings, made.encoder, facts)


def read_centroids(path: Path, encoder: dict) -> Floats:
    """The centroids in an index directory, which the same encoder must have made.

    Raises:
        QuarryError: it is of another kind, or its encoder is another.
    """
    index = read_index(path)
    if index.kind != "centroids":
        raise QuarryError(
            f"index '{path.name}' is of kind {index.kind}; centroids are needed here. "
            f"Name an entry of kind centroids."
        )
    if index.encoder["fingerprint"] != encoder["fingerprint"]:
        raise QuarryError(
            f"index '{path.name}' was built with {index.encoder['name']} (max_tokens "
            f"{index.encoder['max_tokens']}, threads {index.encoder['threads']}); the encoder is "
            f"{encoder['name']} (max_tokens {encoder['max_tokens']}, threads {encoder['threads']}, "
            f"other fingerprint). Give both entries the same model and values."
        )
    return np.asarray(index.arrays["centroids"])


def assign(vectors: Floats, centroids: Floats) -> npt.NDArray[np.int32]:
    """(n,) the nearest centroid of each vector, by inner product."""
    if not len(vectors):
        return np.empty(0, dtype=np.int32)
    _, nearest = faiss.knn(vectors, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return nearest[:, 0].astype(np.int32)


def inverted_file(
    vectors: Floats, centroids: Floats, lists: npt.NDArray[np.int32]
) -> faiss.IndexIVFFlat:
    """faiss's index over lists that are known already: a copy, no search for the nearest."""
    d = vectors.shape[1]
    quantizer = faiss.IndexFlatIP(d)
    quantizer.add(centroids)
    ivf = faiss.IndexIVFFlat(quantizer, d, len(centroids), faiss.METRIC_INNER_PRODUCT)
    ivf.is_trained = True
    vectors, lists = np.ascontiguousarray(vectors), lists.astype(np.int64)
    ivf.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(lists))
    return ivf


class Ivf:
    """A ``Retriever``."""

    def __init__(self, index: Index, encoder: Path | None) -> None:
        self.fingerprint = index.fingerprint
        self._encoder = encoder_of(index, encoder)
        self._vectors = index.arrays["vectors"]
        self._centroids = np.asarray(index.arrays["centroids"])
        self._nprobe = min(index.settings["nprobe"], len(self._centroids))
        self._docids = np.array(index.docids, dtype=object)
        self._ivf = inverted_file(self._vectors, self._centroids, index.arrays["lists"])
        self._ivf.nprobe = self._nprobe

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """Up to k hits per query, best first; equal scores by docid descending."""
        faiss.omp_set_num_threads(self._encoder.model.threads)
        ranked = search_vectors(
            encode_queries(self._encoder, queries), self._vectors, k, self._propose
        )
        return as_hits(ranked, self._docids)

    def _propose(self, queries: Floats, m: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        lists = np.arange(len(self._centroids), dtype=np.int32)
        probed = [top_k(lists, self._centroids @ q, self._nprobe) for q in queries]
        nearest, near = (np.array(part) for part in zip(*probed, strict=True))
        return self._ivf.search_preassigned(queries, m, nearest.astype(np.int64), near)


def retriever(index: Index, encoder: Path | None) -> Ivf:
    """The index, searched with the encoder that made it."""
    return Ivf(index, encoder)
