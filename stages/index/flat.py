"""Dense retrieval without approximation: every passage is scored, by inner product."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from stages.encoder import encode_queries
from stages.index import Inputs
from stages.index.embedding import embed_passages, encoder_of
from stages.index.layout import Contents, Index, KindParams, Slot
from stages.index.ranking import as_hits
from stages.index.vectors import Floats, search_vectors
from stages.types import Hits, Query


class Params(KindParams):
    """An entry of kind flat."""

    kind: Literal["flat"]
    corpus: Slot  # an entry of ingest
    model: Slot  # an entry of finetune: a dense encoder
    centroids: Literal["none"]
    triples: Literal["none"] = "none"
    max_tokens: int = Field(128, ge=8)  # of a text; the rest is not read
    threads: int = Field(1, ge=1)  # of the encoder and of faiss


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The vectors, and nothing else."""
    made = embed_passages(
        passages, inputs, "dense", max_tokens=params.max_tokens, threads=params.threads
    )
    return Contents(made.docids, {"vectors": made.vectors}, {}, {}, made.encoder, made.facts)


class Flat:
    """A ``Retriever``."""

    def __init__(self, index: Index, encoder: Path | None) -> None:
        self.fingerprint = index.fingerprint
        self._encoder = encoder_of(index, encoder)
        self.at_once = self._encoder.model.threads  # so many threads may search
        self._vectors = index.arrays["vectors"]
        self._docids = np.array(index.docids, dtype=object)

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """Up to k hits per query, best first; equal scores by docid descending."""
        faiss.omp_set_num_threads(self._encoder.model.threads)
        ranked = search_vectors(
            encode_queries(self._encoder, queries), self._vectors, k, self._propose
        )
        return as_hits(ranked, self._docids)

    def _propose(self, queries: Floats, m: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        return faiss.knn(queries, self._vectors, m, metric=faiss.METRIC_INNER_PRODUCT)


def retriever(index: Index, encoder: Path | None) -> Flat:
    """The index, searched with the encoder that made it."""
    return Flat(index, encoder)
