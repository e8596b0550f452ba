"""The log of a latency study, and its figures: times with and without lookahead, question by
question.

A row is a search of a request under a condition (``replaying.Round``). These are measurements:
they are written below ``measured/``, never beside results, and no stage reads them. That is why
their schema stands here and not in the contract of the tables.

A figure is a mean over questions. The hit rate is that of Lin et al. (TeleRAG, §5): probed clusters
that were resident, averaged over a request's searches, then over requests that searched. Conditions
replay the same questions, so the speed-up is a ratio of means over pairs; its interval is a paired
bootstrap over questions, which says nothing about what else the machine was doing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import QuarryError
from stages.serve.prefetch.calibrate import MIB
from stages.serve.prefetch.replaying import Round

RESAMPLES = 2000

SCHEMA = pa.schema(
    [
        ("pipeline", pa.string()), ("condition", pa.string()), ("system", pa.string()),
        ("nprobe", pa.int32()), ("batch", pa.int32()), ("order", pa.string()),
        ("budget_bytes", pa.int64()), ("batch_no", pa.int32()), ("qid", pa.string()),
        ("round", pa.int16()), ("n_queries", pa.int32()), ("hits", pa.int32()),
        ("misses", pa.int32()), ("bytes_copied", pa.int64()), ("bytes_missed", pa.int64()),
        ("depth", pa.int32()), ("window_s", pa.float64()), ("t_sched", pa.float64()),
        ("t_pre", pa.float64()), ("t_ret", pa.float64()), ("t_post", pa.float64()),
        ("topk_ids", pa.list_(pa.string())),
    ]
)  # fmt: skip


class Condition(NamedTuple):
    """How requests were served. ``label`` tells it from the others of its study."""

    label: str
    system: str  # a strategy of the engine: none, gradual, all, once, runtime
    nprobe: int
    batch: int  # requests that are served together
    order: str  # arrival, or similar: by the similarity of their questions
    budget_bytes: int

    @property
    def value(self) -> tuple[int, int, str]:
        """All but the system: what is compared with and without lookahead."""
        return self.nprobe, self.batch, self.order


class Served(NamedTuple):
    """What one condition gave: its micro-batches in order, each with the rounds of its requests."""

    condition: Condition
    batches: list[list[Round]]

    @property
    def rounds(self) -> dict[str, list[Round]]:
        """By question, in the order of the ids."""
        own: dict[str, list[Round]] = {}
        for row in (row for batch in self.batches for row in batch):
            own.setdefault(row.qid, []).append(row)
        return dict(sorted(own.items()))

    def seconds(self) -> np.ndarray:
        """(n,) of each question, by id."""
        return np.array([sum(r.seconds for r in rows) for rows in self.rounds.values()])

    def waits(self) -> np.ndarray:
        """(n,) for passages, of each question, by id."""
        return np.array([sum(r.t_ret for r in rows) for rows in self.rounds.values()])


def log_table(pipeline: str, served: Sequence[Served]) -> pa.Table:
    """The log, condition after condition in the order of serving."""
    rows = []
    for condition, batches in served:
        how = {"pipeline": pipeline, "condition": condition.label}
        how |= {k: v for k, v in condition._asdict().items() if k != "label"}
        for no, batch in enumerate(batches):
            rows += [how | {"batch_no": no} | row._asdict() for row in batch]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_log(log: pa.Table, folder: Path) -> Path:
    """``serve_log.parquet``."""
    path = folder / "serve_log.parquet"
    pq.write_table(log, path, compression="zstd")
    return path


def check_equal(served: Sequence[Served]) -> None:
    """An error where two conditions with the same nprobe found other passages.

    Raises:
        QuarryError: naming the first such search; a condition may change when, never what.
    """
    first: dict[tuple[int, str, int], tuple[str, tuple[str, ...]]] = {}
    for condition, batches in served:
        for row in (row for batch in batches for row in batch):
            at = condition.nprobe, row.qid, row.round
            label, found = first.setdefault(at, (condition.label, row.topk_ids))
            if found != row.topk_ids:
                raise QuarryError(
                    f"measure: question {row.qid}, search {row.round}: '{condition.label}' found "
                    f"{row.topk_ids}, '{label}' found {found}. Lookahead must not change results."
                )


def metrics(served: Sequence[Served]) -> dict[str, dict[str, float]]:
    """Figures of each condition, by label; those beside ``none`` where that was measured too."""
    without = {s.condition.value: s for s in served if s.condition.system == "none"}
    return {
        s.condition.label: _figures(s) | _against(s, without.get(s.condition.value)) for s in served
    }


def _figures(served: Served) -> dict[str, float]:
    rounds = list(served.rounds.values())
    n = len(rounds)

    def mean(name: str) -> float:
        return sum(getattr(row, name) for rows in rounds for row in rows) / n

    rates = [[r.hits / (r.hits + r.misses) for r in rows if r.n_queries] for rows in rounds]
    rates = [np.mean(own) for own in rates if own]
    windows = [r.window_s for rows in rounds for r in rows if r.window_s]
    copied = mean("bytes_copied") / MIB
    figures = {
        "n": n,
        "seconds": float(served.seconds().mean()),
        "model_s": mean("t_pre") + mean("t_post"),
        "retrieval_s": mean("t_ret"),
        "other_s": mean("t_sched"),
        "searches": sum(row.n_queries > 0 for rows in rounds for row in rows) / n,
        "copied_mib": copied,
        "missed_mib": mean("bytes_missed") / MIB,
        "per_second": n / sum(_wall(batch) for batch in served.batches),
    }
    if rates:
        figures["hit_rate"] = float(np.mean(rates))
    if windows:
        figures["window_s"] = float(np.mean(windows))
        figures["depth"] = float(np.mean([r.depth for rows in rounds for r in rows if r.window_s]))
    return {name: _short(value) for name, value in figures.items()}


def _wall(batch: Sequence[Round]) -> float:
    """Seconds of a micro-batch: of its slowest request."""
    seconds: dict[str, float] = {}
    for row in batch:
        seconds[row.qid] = seconds.get(row.qid, 0.0) + row.seconds
    return max(seconds.values())


def _against(served: Served, without: Served | None) -> dict[str, float]:
    """How much faster than without lookahead; nothing for that itself."""
    if without is None or without is served:
        return {}
    ours, theirs = served.seconds(), without.seconds()
    low, high = interval(theirs, ours)
    waits = served.waits().mean(), without.waits().mean()
    figures = {"speedup": theirs.mean() / ours.mean(), "speedup_low": low, "speedup_high": high}
    if waits[0]:
        figures["retrieval_speedup"] = waits[1] / waits[0]
    figures["throughput_ratio"] = sum(map(_wall, without.batches)) / sum(map(_wall, served.batches))
    return {name: _short(float(value)) for name, value in figures.items()}


def interval(theirs: np.ndarray, ours: np.ndarray, *, seed: int = 13) -> tuple[float, float]:
    """95 % of the ratio of means, (n,) and (n,) of the same questions: a paired bootstrap."""
    drawn = np.random.default_rng(seed).integers(0, len(ours), (RESAMPLES, len(ours)))
    ratios = theirs[drawn].mean(1) / ours[drawn].mean(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def latency_rows(
    served: Sequence[Served], figures: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Rows of the plot of seconds per question, condition by condition."""
    parts = ("seconds", "model_s", "retrieval_s", "other_s", "per_second")
    return [
        {"system": s.condition.label, **{p: figures[s.condition.label][p] for p in parts}}
        for s in served
    ]


def hit_rows(
    served: Sequence[Served], figures: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Rows of the plot of hit rate against budget: what was measured, of those that look ahead."""
    return [
        {
            "system": "measured", "mib": round(s.condition.budget_bytes / MIB, 4),
            "hit_rate": figures[s.condition.label]["hit_rate"],
        }
        for s in served
        if s.condition.system == "gradual" and "hit_rate" in figures[s.condition.label]
    ]  # fmt: skip


def _short(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
