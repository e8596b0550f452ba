"""Ours against a peer: the same work, alternately, in one process; one JSON line on stdout.

A benchmark file builds its work, then calls ``compare``. What it must bring:

* ``ours`` and ``theirs`` take nothing, do the whole work and return a result;
* ``check(ours_result, theirs_result)`` asserts that the results are the same, with a tolerance
  that its docstring states; it runs before anything is timed;
* where the peer has a batch size, ``theirs`` is a mapping from label to callable (three sizes):
  the fastest of them after the warm-up is the peer (a run of ``WARM`` seconds is its own
  warm-up);
* ``before`` empties caches, untimed, before every run of either side.

``work`` is how many units one run does, and figures are units per second. With ``work=None``
the figures are seconds. ``ratio`` is above 1 where ours is better, either way.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

Run = Callable[[], Any]

ROOT = Path(__file__).resolve().parents[1]
WARM = 20  # seconds: imports and first allocations are lost in a run this long


def _nothing() -> None:
    """The default of ``before``."""


def _seconds(run: Run, before: Callable[[], None]) -> float:
    before()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    name: str,
    *,
    peer: str,
    unit: str,
    aim: float,
    ours: Run,
    theirs: Run | Mapping[str, Run],
    work: float | None,
    check: Callable[[Any, Any], None],
    samples: int = 5,
    before: Callable[[], None] = _nothing,
) -> dict[str, Any]:
    """The printed line as a dict: medians of ``samples`` alternating runs; odd runs start with us.

    All samples and the peer's chosen variant go to standard error.
    """
    variants = theirs if isinstance(theirs, Mapping) else {"": theirs}
    before()
    mine = ours()
    took = {}
    for v, run in variants.items():
        before()
        start = time.perf_counter()
        check(mine, run())
        took[v] = time.perf_counter() - start
    if min(took.values()) < WARM:
        took = {v: _seconds(run, before) for v, run in variants.items()}
    label = min(took, key=took.__getitem__)
    peer_run = variants[label]

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(samples):
        order = [("ours", ours), ("theirs", peer_run)]
        for side, run in order if i % 2 == 0 else reversed(order):
            seconds[side].append(_seconds(run, before))
    samples_of = {
        side: [work / s if work is not None else s for s in values]
        for side, values in seconds.items()
    }
    mid = {side: statistics.median(values) for side, values in samples_of.items()}
    better = mid["ours"] / mid["theirs"] if work is not None else mid["theirs"] / mid["ours"]
    line = {
        "benchmark": name, "peer": peer, "unit": unit, "ours": _short(mid["ours"]),
        "theirs": _short(mid["theirs"]), "ratio": round(better, 3), "aim": aim,
    }  # fmt: skip
    detail = {"benchmark": name, "variant": label} | {
        side: [_short(v) for v in values] for side, values in samples_of.items()
    }
    print(json.dumps(detail), file=sys.stderr, flush=True)
    print(json.dumps(line), flush=True)
    return line


def _short(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


@contextmanager
def scratch_clone() -> Iterator[None]:
    """In the block the current folder is a clone of this checkout's last commit, gone afterwards.

    It has none of its tags, outputs or caches; processes started there take its code, and write
    into its own record store and Prefect database.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder).resolve() / "clone"
        subprocess.run(["git", "clone", "-q", "--no-tags", str(ROOT), str(clone)], check=True)
        for name in ("QUARRY_RECORDS", "PREFECT_API_URL"):
            os.environ.pop(name, None)
        os.environ |= {
            "PYTHONPATH": str(clone), "PREFECT_HOME": f"{clone}/.quarry/prefect",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        with chdir(clone):
            yield
