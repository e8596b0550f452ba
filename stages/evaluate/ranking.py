"""Ranking measures as trec_eval computes them, under the names of ir_measures.

``nDCG``: gain is the judgement, discount log2(rank + 1) (Järvelin & Kekäläinen, TOIS 2002).
``R``, ``P``, ``RR``, ``AP``, ``Success``: a judgement above 0 is relevant. ``@k`` cuts the run;
it can be left out for nDCG, RR and AP. Ranks are taken as given, unjudged documents are not
relevant, a judged query without hits or without relevant documents has the value 0.

Only judged hits matter to any of these, and they are few: the run is reduced to them first, and
each measure is then a handful of sums per query. O(h + j log j) for h hits, j judgements.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Values = npt.NDArray[np.float64]
_NAME = re.compile(r"(nDCG|R|P|RR|AP|Success)(?:@([1-9]\d*))?")
_NEED_K = {"R", "P", "Success"}


class Measure(NamedTuple):
    """A measure's family and its cut-off, if it has one."""

    family: str
    k: int | None


def parse_measure(name: str) -> Measure:
    """The measure of a name such as ``nDCG@10``.

    Raises:
        ValueError: no such measure, or a cut-off is missing.
    """
    match = _NAME.fullmatch(name)
    if not match or (match[1] in _NEED_K and match[2] is None):
        raise ValueError(
            f"no measure {name!r}; there are nDCG, nDCG@k, AP, AP@k, RR, RR@k, R@k, P@k, Success@k"
        )
    return Measure(match[1], int(match[2]) if match[2] else None)


class Judged(NamedTuple):
    """The judged hits of a run in order of (query, rank), (j,); and what there was to find."""

    query: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    gain: Values  # the judgement, at least 0
    ideal_query: npt.NDArray[np.int64]  # the relevant documents, best first per query
    ideal_rank: npt.NDArray[np.int64]
    ideal_gain: Values
    n_queries: int


def measure_run(
    run: pa.Table, qrels: pa.Table, qids: Sequence[str], measures: Sequence[str]
) -> Values:
    """The value of each measure for each query, (len(measures), len(qids)).

    The run is in the contract's order: by qid, then rank. Judgements of other queries are
    ignored; a (qid, docid) occurs once in each table.
    """
    judged = find_judged(run, qrels, qids)
    values = [_value(judged, parse_measure(m)) for m in measures]
    return np.array(values).reshape(len(measures), len(qids))


def find_judged(run: pa.Table, qrels: pa.Table, qids: Sequence[str]) -> Judged:
    """The hits of a run that have a judgement, and the ideal order of each query."""
    asked = pa.array(qids, pa.string())
    qrels = qrels.filter(pc.is_in(qrels["qid"], asked))
    docs = qrels["docid"].unique()
    rel = qrels["rel"].to_numpy().astype(np.float64)
    query = _position(qrels["qid"], asked)
    key = query * len(docs) + _position(qrels["docid"], docs)

    hit_query, hit_doc = _position(run["qid"], asked), _position(run["docid"], docs)
    at = np.flatnonzero((hit_query >= 0) & (hit_doc >= 0))
    hit_key = hit_query[at] * len(docs) + hit_doc[at]
    found = _position(pa.array(hit_key), pa.array(key))
    at, found = at[found >= 0], found[found >= 0]

    ideal = np.lexsort((-rel, query))
    ideal = ideal[rel[ideal] > 0]
    return Judged(
        query=hit_query[at],
        rank=run["rank"].to_numpy()[at].astype(np.int64),
        gain=np.maximum(rel[found], 0),
        ideal_query=query[ideal],
        ideal_rank=_count_up(query[ideal]),
        ideal_gain=rel[ideal],
        n_queries=len(qids),
    )


def _position(values: pa.Array | pa.ChunkedArray, among: pa.Array) -> npt.NDArray[np.int64]:
    """Where each value stands in ``among``, -1 for nowhere."""
    found = pc.fill_null(pc.index_in(values, value_set=among), -1)
    return found.to_numpy().astype(np.int64)


def _count_up(group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """1, 2, 3 ... within each stretch of equal numbers."""
    if len(group) == 0:
        return group
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    return np.arange(len(group)) - np.repeat(first, np.diff(np.r_[first, len(group)])) + 1


def _value(judged: Judged, measure: Measure) -> Values:
    """One measure for every query, (q,)."""
    n, k = judged.n_queries, measure.k or np.iinfo(np.int64).max
    n_relevant = np.bincount(judged.ideal_query, minlength=n)
    if measure.family == "nDCG":
        hit, ideal = judged.rank <= k, judged.ideal_rank <= k
        dcg = _dcg(judged.query[hit], judged.rank[hit], judged.gain[hit], n)
        best = _dcg(
            judged.ideal_query[ideal], judged.ideal_rank[ideal], judged.ideal_gain[ideal], n
        )
        return _ratio(dcg, best)

    relevant = (judged.rank <= k) & (judged.gain > 0)
    query, rank = judged.query[relevant], judged.rank[relevant]
    n_found = np.bincount(query, minlength=n)
    nth = _count_up(query)  # how many relevant documents there are down to this one
    match measure.family:
        case "R":
            return _ratio(n_found, n_relevant)
        case "P":
            return n_found / k
        case "Success":
            return (n_found > 0).astype(np.float64)
        case "RR":
            return np.bincount(query, (nth == 1) / rank, minlength=n)
        case _:
            return _ratio(np.bincount(query, nth / rank, minlength=n), n_relevant)


def _dcg(query: npt.NDArray[np.int64], rank: npt.NDArray[np.int64], gain: Values, n: int) -> Values:
    return np.bincount(query, gain / np.log2(rank + 1), minlength=n)


def _ratio(part: npt.NDArray, whole: npt.NDArray) -> Values:
    """part / whole, 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
