"""Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods.

Gordon V. Cormack, Charles L. A. Clarke, Stefan Büttcher, SIGIR 2009.

Each run votes for its documents with the reciprocal of their rank, softened by a constant, so
that one run's first place does not outvote two runs' good places. Scores are never compared,
which makes it the safe choice for runs whose scores live on different scales.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationInfo, field_validator

from stages.fuse.scores import add_up, stack
from stages.params import Entry


class Params(Entry):
    """An entry of ``fuse`` with ``rule: rrf``."""

    rule: Literal["rrf"]
    corpus: str  # whose runs are fused: data/runs/<corpus>
    runs: list[str] = Field(min_length=1)  # serve entries over that corpus
    rrf_k: float = Field(60.0, ge=0)  # larger: deep ranks count nearly as much as the first
    weights: list[float] | None = None  # one per run; None: all 1
    k: int = Field(100, ge=1)  # documents kept per query

    @field_validator("weights")
    @classmethod
    def _one_per_run(cls, weights: list[float] | None, info: ValidationInfo) -> list[float] | None:
        check_weights(weights, len(info.data.get("runs", weights or [])))
        return weights


def fuse(
    runs: Sequence[pa.Table],
    *,
    rrf_k: float = 60.0,
    weights: Sequence[float] | None = None,
    k: int | None = None,
) -> pa.Table:
    """Reciprocal-rank fusion: score(d) = Σ_i w_i / (rrf_k + rank_i(d)).

    A document missing from a run adds nothing for that run. Ranks start at 1 and are
    taken from the runs as given; scores are not looked at. Ties go to the larger docid,
    as in trec_eval. Queries are the union over runs; no runs give an empty run.

    The weights are ours, as in the weighted variants of search engines: the paper has w_i = 1.

    Raises:
        ValueError: a weight is negative, or there are not as many weights as runs.
    """
    check_weights(weights, len(runs))
    hits = stack(runs)
    w = np.ones(len(runs)) if weights is None else np.asarray(weights, dtype=np.float64)
    return add_up(hits, w[hits.run] / (rrf_k + hits.rank), k=k)


def check_weights(weights: Sequence[float] | None, n_runs: int) -> None:
    """An error unless there is one finite weight >= 0 per run, or none at all."""
    if weights is None:
        return
    if len(weights) != n_runs:
        raise ValueError(f"{len(weights)} weights for {n_runs} runs; give one weight per run")
    if not all(np.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"weights are {list(weights)}; each must be a finite number >= 0")
