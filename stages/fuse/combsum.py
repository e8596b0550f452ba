"""Combination of Multiple Searches: CombSUM.

Edward A. Fox and Joseph A. Shaw, TREC-2, 1993.

A document's score is the sum of its scores in the runs, once they are on one scale.
"""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
from pydantic import Field

from stages.fuse.scores import Norm, add_up, normalise, stack
from stages.params import Entry


class Params(Entry):
    """An entry of ``fuse`` with ``rule: combsum``."""

    rule: Literal["combsum"]
    corpus: str  # whose runs are fused: data/runs/<corpus>
    runs: list[str] = Field(min_length=1)  # serve entries over that corpus
    norm: Norm = "minmax"  # how scores are made comparable, per run and query
    k: int = Field(100, ge=1)  # documents kept per query


def fuse(runs: Sequence[pa.Table], *, norm: Norm = "minmax", k: int | None = None) -> pa.Table:
    """CombSUM: score(d) = Σ_i norm(s_i(d)).

    A document missing from a run adds nothing for that run: with ``minmax`` that is the score
    of the run's last document, with ``zscore`` that of an average one (the paper, which adds
    raw similarities, has no such choice). Ties go to the larger docid. Queries are the union
    over runs; no runs give an empty run.
    """
    hits = stack(runs)
    return add_up(hits, normalise(hits, norm), k=k)
