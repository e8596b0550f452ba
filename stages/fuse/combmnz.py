"""Combination of Multiple Searches: CombMNZ.

Edward A. Fox and Joseph A. Shaw, TREC-2, 1993.

CombSUM times the number of runs that found the document: agreement counts twice.
"""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
from pydantic import Field

from stages.fuse.scores import Norm, add_up, normalise, stack
from stages.params import Entry


class Params(Entry):
    """An entry of ``fuse`` with ``rule: combmnz``."""

    rule: Literal["combmnz"]
    corpus: str  # whose runs are fused: data/runs/<corpus>
    runs: list[str] = Field(min_length=1)  # serve entries over that corpus
    norm: Norm = "minmax"  # how scores are made comparable, per run and query
    k: int = Field(100, ge=1)  # documents kept per query


def fuse(runs: Sequence[pa.Table], *, norm: Norm = "minmax", k: int | None = None) -> pa.Table:
    """CombMNZ: score(d) = |{i : d in run_i}| · Σ_i norm(s_i(d)).

    Found means that the run holds the document, whatever its score. With ``zscore`` sums can be
    negative, and agreement then pushes a document further down: documents that several runs
    find below their average. Ties go to the larger docid. Queries are the union over runs;
    no runs give an empty run.
    """
    hits = stack(runs)
    return add_up(hits, normalise(hits, norm), times_found=True, k=k)
