"""Learned sparse retrieval: a passage's weights over the vocabulary are its impacts.

score(q, d) = Σ_j w_j(q) · w_j(d), summed over the words that the query has, over all postings:
exact, nothing is pruned.

Formal, Piwowarski & Clinchant, SPLADE, SIGIR 2021; Formal et al., arXiv:2109.10086.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from stages.index import Inputs
from stages.index.embedding import embed_passages, encoder_of
from stages.index.layout import Contents, Index, KindParams, Slot
from stages.index.postings import as_arrays, from_index, one_text_each, search_postings
from stages.index.ranking import as_hits
from stages.types import Hits, Query


class Params(KindParams):
    """An entry of kind splade."""

    kind: Literal["splade"]
    corpus: Slot  # an entry of ingest
    model: Slot  # an entry of finetune: a sparse encoder
    centroids: Literal["none"]
    triples: Literal["none"] = "none"
    max_tokens: int = Field(128, ge=8)  # of a text; the rest is not read
    threads: int = Field(1, ge=1)  # of the encoder


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The postings of every word of the model's vocabulary."""
    made = embed_passages(
        passages, inputs, "sparse", max_tokens=params.max_tokens, threads=params.threads
    )
    postings = made.vectors.T.tocsr()
    facts = {**made.facts, "postings": postings.nnz}
    return Contents(made.docids, as_arrays(postings), {}, {}, made.encoder, facts)


class Splade:
    """A ``Retriever``."""

    def __init__(self, index: Index, encoder: Path | None) -> None:
        self.fingerprint = index.fingerprint
        self._encoder = encoder_of(index, encoder)
        self.at_once = self._encoder.model.threads  # so many threads may search
        self._postings = from_index(index)
        self._docids = np.array(index.docids, dtype=object)

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """Up to k hits per query, best first; equal scores by docid descending."""
        weights = self._encoder.encode(one_text_each(queries, "splade"), "query")
        return as_hits(search_postings(weights, self._postings, k), self._docids)


def retriever(index: Index, encoder: Path | None) -> Splade:
    """The index, searched with the encoder that made it."""
    return Splade(index, encoder)
