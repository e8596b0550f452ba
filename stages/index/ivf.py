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

from stages.clusters import Floats, nearest_clusters
from stages.encoder import encode_queries
from stages.index import Inputs
from stages.index.embedding import embed_passages, encoder_of
from stages.index.layout import Contents, Index, KindParams, Slot
from stages.index.lists import assign, inverted_file, read_centroids
from stages.index.ranking import as_hits
from stages.index.vectors import search_vectors
from stages.types import Hits, Query


class Params(KindParams):
    """An entry of kind ivf."""

    kind: Literal["ivf"]
    corpus: Slot  # an entry of ingest
    model: Slot  # an entry of finetune: a dense encoder
    centroids: Slot  # an entry of index, of kind centroids, made with the same model
    triples: Literal["none"] = "none"
    nprobe: int = Field(ge=1)  # lists that a query looks into
    max_tokens: int = Field(128, ge=8)  # of a text; the rest is not read
    threads: int = Field(1, ge=1)  # of the encoder and of faiss


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The vectors, the centroids, and for each vector the list that it is in."""
    made = embed_passages(
        passages, inputs, "dense", max_tokens=params.max_tokens, threads=params.threads
    )
    centroids = read_centroids(inputs.centroids, made, params.corpus)
    lists = assign(made.vectors, centroids, threads=params.threads)
    arrays = {"vectors": made.vectors, "centroids": centroids, "lists": lists}
    settings = {"nprobe": params.nprobe}
    facts = {**made.facts, "centroids": len(centroids)}
    return Contents(made.docids, arrays, {}, settings, made.encoder, facts)


class Ivf:
    """A ``Retriever``."""

    def __init__(self, index: Index, encoder: Path | None) -> None:
        self.fingerprint = index.fingerprint
        self._encoder = encoder_of(index, encoder)
        self.at_once = self._encoder.model.threads  # so many threads may search
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
        probed = nearest_clusters(queries, self._centroids, self._nprobe)
        return self._ivf.search_preassigned(queries, m, probed, None)


def retriever(index: Index, encoder: Path | None) -> Ivf:
    """The index, searched with the encoder that made it."""
    return Ivf(index, encoder)
