"""What every fusion rule shares: hits of several runs as columns of numbers.

A *pair* is one (query, document); up to one hit per run belongs to it. A rule says what each
hit is worth, ``add_up`` adds per pair and ranks. No loop over queries or documents:
O(h log h) for h hits in all.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.runs import rank_rows
from stages.tables import TABLES

Norm = Literal["minmax", "zscore"]


class Hits(NamedTuple):
    """All hits of all runs; arrays are (h,) unless they say otherwise."""

    qid: pa.DictionaryArray
    docid: pa.DictionaryArray
    run: npt.NDArray[np.int64]  # which run a hit is from, 0 .. n_runs - 1
    rank: npt.NDArray[np.int32]
    score: npt.NDArray[np.float64]
    n_runs: int

    @property
    def query(self) -> npt.NDArray[np.int64]:
        """A number per query, the same in all runs."""
        return self.qid.indices.to_numpy().astype(np.int64)


def stack(runs: Sequence[pa.Table]) -> Hits:
    """The runs' rows on top of each other, ids as codes of one dictionary."""
    rows = pa.concat_tables([TABLES["runs"].schema.empty_table(), *runs]).combine_chunks()
    return Hits(
        qid=_encode(rows["qid"]),
        docid=_encode(rows["docid"]),
        run=np.repeat(np.arange(len(runs)), [r.num_rows for r in runs]),
        rank=rows["rank"].to_numpy(),
        score=rows["score"].to_numpy(),
        n_runs=len(runs),
    )


def _encode(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return column.combine_chunks().dictionary_encode()


def add_up(
    hits: Hits, worth: npt.NDArray[np.float64], *, times_found: bool = False, k: int | None = None
) -> pa.Table:
    """The run that ranks each pair by the sum of its hits' worth, (h,).

    ``times_found`` multiplies by the number of runs that hold the pair. Terms are added from
    small to large, so that the order of the runs cannot tell equal documents apart by a
    rounding error.
    """
    code = hits.query * len(hits.docid.dictionary) + hits.docid.indices.to_numpy()
    _, first, pair = np.unique(code, return_index=True, return_inverse=True)
    terms = np.zeros((len(first), hits.n_runs))
    terms[pair, hits.run] = worth
    terms.sort(axis=1)
    score = terms.sum(axis=1)
    if times_found:
        score *= np.bincount(pair, minlength=len(first))
    take = pa.array(first)
    return rank_rows(hits.qid.take(take), hits.docid.take(take), score, k=k)


def normalise(hits: Hits, norm: Norm) -> npt.NDArray[np.float64]:
    """Scores made comparable between runs, (h,): per run and query, over the hits there are.

    ``minmax``: (s - min) / (max - min), in [0, 1]. ``zscore``: (s - mean) / standard deviation
    (of the population). Where all scores of a list are equal both give 0, as in ranx.
    """
    score = hits.score
    _, group = np.unique(hits.run * len(hits.qid.dictionary) + hits.query, return_inverse=True)
    n = np.bincount(group)
    low, high = np.full(len(n), np.inf), np.full(len(n), -np.inf)
    np.minimum.at(low, group, score)
    np.maximum.at(high, group, score)
    if norm == "minmax":
        centre, spread = low, high - low
    else:
        centre = np.bincount(group, score) / n
        spread = np.sqrt(np.bincount(group, (score - centre[group]) ** 2) / n)
    spread = np.where(high > low, spread, np.inf)  # equal scores: 0, not noise over noise
    return (score - centre[group]) / spread[group]
