"""Our fusion rules against ranx (Bassani, ECIR 2022), scores to 1e-12 and order."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from stages.fuse import combmnz, combsum, rrf
from stages.runs import rank_rows

pytest.importorskip("ranx", reason="ranx is in the test extra: make setup")

# ranx compiles its rules for half a minute. Without the compiler it is plain Python and gives
# the same numbers; the switch must not leak into this process, so ranx runs in its own.
RANX = """
import json, sys
from ranx import Run, fuse
runs = [Run(r) for r in json.load(sys.stdin)]
out = {}
for method, norm in [("rrf", None), ("sum", "min-max"), ("sum", "zmuv"), ("mnz", "min-max"), ("mnz", "zmuv")]:
    out[f"{method} {norm}"] = fuse(runs, norm=norm, method=method).to_dict()
json.dump(out, sys.stdout)
"""  # noqa: E501
OURS = {
    "rrf None": rrf.fuse,
    "sum min-max": lambda rs: combsum.fuse(rs, norm="minmax"),
    "sum zmuv": lambda rs: combsum.fuse(rs, norm="zscore"),
    "mnz min-max": lambda rs: combmnz.fuse(rs, norm="minmax"),
    "mnz zmuv": lambda rs: combmnz.fuse(rs, norm="zscore"),
}


def random_run(rng: np.random.Generator, n_queries: int = 8, n_docs: int = 40) -> pa.Table:
    rows = [
        (f"q{q}", f"d{d}", rng.normal(5, 3))
        for q in range(n_queries)
        for d in rng.choice(n_docs, size=rng.integers(1, 25), replace=False)
    ]
    qid, docid, score = zip(*rows, strict=True)
    return rank_rows(pa.array(qid), pa.array(docid), np.array(score))


def as_dict(run: pa.Table) -> dict[str, dict[str, float]]:
    nested: dict[str, dict[str, float]] = {}
    for row in run.to_pylist():
        nested.setdefault(row["qid"], {})[row["docid"]] = row["score"]
    return nested


@pytest.fixture(scope="module")
def runs() -> list[pa.Table]:
    return [random_run(np.random.default_rng(seed)) for seed in range(4)]


@pytest.fixture(scope="module")
def ranx_says(runs) -> dict[str, dict[str, dict[str, float]]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANX],
        input=json.dumps([as_dict(r) for r in runs]),
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("rule", OURS)
def test_the_scores_are_those_of_ranx(rule, runs, ranx_says):
    ours, theirs = as_dict(OURS[rule](runs)), ranx_says[rule]
    assert ours.keys() == theirs.keys()
    for qid in ours:
        assert ours[qid] == pytest.approx(theirs[qid], abs=1e-12), qid


@pytest.mark.parametrize("rule", OURS)
def test_the_order_is_that_of_ranx_but_for_ties(rule, runs, ranx_says):
    for qid, hits in as_dict(OURS[rule](runs)).items():
        in_our_order = [ranx_says[rule][qid][d] for d in hits]
        assert np.all(np.diff(in_our_order) <= 1e-12)
