"""Where an inverted file is cut: k-means over a pinned sample. Read by ``ivf``, never searched.

Why a stage of its own: k-means moves every centroid when one vector of its input changes, and an
index whose lists all move is another index. Here the input is a corpus that the entry names, and
of it the ``sample`` passages with the smallest text hashes: a sample that does not care how
passages are named or ordered, or how many others there are. An index that is rebuilt daily over
a growing corpus names centroids over a corpus that stays as it is (an older copy of it), and its
lists stay where they were. Centroids over the same corpus follow its edits: a few seconds, and
the same bytes as from scratch, since nothing but the inputs decides them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
from pydantic import Field

from stages.errors import QuarryError
from stages.index import Inputs
from stages.index.embedding import embed_passages
from stages.index.layout import Contents, Index, KindParams, Slot
from stages.index.vectors import Floats

ITERATIONS = 20


class Params(KindParams):
    """An entry of kind centroids."""

    kind: Literal["centroids"]
    corpus: Slot  # an entry of ingest; one that is never edited keeps the lists in place
    model: Slot  # an entry of finetune: a dense encoder
    centroids: Literal["none"]
    triples: Literal["none"] = "none"
    nlist: int = Field(ge=1)  # how many; about the square root of the number of passages
    seed: int = 13  # of k-means
    sample: int = Field(65_536, ge=1)  # at most so many passages; 64 per centroid are enough
    max_tokens: int = Field(128, ge=8)  # of a text; the rest is not read
    threads: int = Field(1, ge=1)  # of the encoder and of faiss


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """``nlist`` unit vectors, or one for each distinct vector if there are fewer."""
    pinned = pin(passages["text_hash"].to_pylist(), params.sample)
    made = embed_passages(
        passages.take(pa.array(pinned, pa.int64())), inputs, "dense",
        max_tokens=params.max_tokens, threads=params.threads,
    )  # fmt: skip
    faiss.omp_set_num_threads(params.threads)
    centroids = train(made.vectors, nlist=params.nlist, seed=params.seed)
    facts = {**made.facts, "centroids": len(centroids)}
    return Contents([], {"centroids": centroids}, {}, {}, made.encoder, facts)


def pin(text_hashes: Sequence[str], sample: int) -> list[int]:
    """The rows of the ``sample`` smallest text hashes, each hash once, smallest first."""
    first = {h: i for i, h in reversed(list(enumerate(text_hashes)))}
    return [first[h] for h in sorted(first)[:sample]]


def train(vectors: Floats, *, nlist: int, seed: int) -> Floats:
    """Spherical k-means: (c, d) unit vectors, c = min(nlist, distinct rows); deterministic.

    Rows are sorted by value first: their order, and so their names, do not matter.
    """
    distinct = np.unique(vectors, axis=0)
    if len(distinct) <= nlist:
        return distinct
    kmeans = faiss.Kmeans(
        vectors.shape[1], nlist, niter=ITERATIONS, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=len(distinct),
    )  # fmt: skip
    kmeans.train(distinct)
    return kmeans.centroids


def retriever(index: Index, encoder: Path | None) -> None:
    """Centroids have no passages.

    Raises:
        QuarryError: always.
    """
    raise QuarryError(
        f"index '{index.path.name}' holds centroids, not passages: nothing to search. "
        f"Name an index of kind ivf that uses them."
    )
