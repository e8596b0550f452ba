"""Reciprocal-rank fusion against ranx: 4 runs of 1,000 queries x 1,000 documents.

Each side starts from its own runs in memory (Arrow tables; ranx.Run) and ends with a ranked run.
The documents of a run are drawn from 5,000, so that a fused query holds about 2,950.
"""

import warnings

import numpy as np
import pyarrow as pa
import ranx

from benchmarks.harness import compare
from stages.fuse import rrf
from stages.runs import rank_rows

N_QUERIES, N_DOCS, N_RUNS, UNIVERSE = 1_000, 1_000, 4, 5_000


def draw_runs(seed: int = 13) -> list[pa.Table]:
    """Runs with random scores; no two scores of a run are equal, so there are no ties to break."""
    rng = np.random.default_rng(seed)
    qids = pa.array([f"q{i}" for i in range(N_QUERIES)])
    qid = qids.take(pa.array(np.repeat(np.arange(N_QUERIES), N_DOCS)))
    names = pa.array([f"d{i:07d}" for i in range(UNIVERSE)])
    runs = []
    for _ in range(N_RUNS):
        docs = np.concatenate([rng.permutation(UNIVERSE)[:N_DOCS] for _ in range(N_QUERIES)])
        runs.append(rank_rows(qid, names.take(pa.array(docs)), rng.permutation(len(docs)) / 7))
    return runs


def as_ranx(run: pa.Table) -> ranx.Run:
    """The same run as ranx holds it."""
    frame = run.select(["qid", "docid", "score"]).to_pandas()
    return ranx.Run.from_df(frame.astype({"qid": object, "docid": object}), "qid", "docid")


def assert_same(ours: pa.Table, theirs: ranx.Run) -> None:
    """The same documents for every query, scores equal to 1e-12."""
    scores = theirs.to_dict()
    expected = [
        scores[q][d] for q, d in zip(*(ours[c].to_pylist() for c in ("qid", "docid")), strict=True)
    ]
    assert sum(map(len, scores.values())) == ours.num_rows
    np.testing.assert_allclose(ours["score"].to_numpy(), expected, rtol=0, atol=1e-12)


def main() -> None:
    """Print one JSON line."""
    warnings.simplefilter("ignore")  # numba's, about ranx
    runs = draw_runs()
    theirs = [as_ranx(run) for run in runs]
    compare(
        "fuse: RRF, 1,000 queries x 1,000 documents x 4 runs",
        peer="ranx",
        unit="queries/s",
        aim=2.0,
        ours=lambda: rrf.fuse(runs),
        theirs=lambda: ranx.fuse(theirs, method="rrf", params={"k": 60}),
        work=N_QUERIES,
        check=assert_same,
    )


if __name__ == "__main__":
    main()
