"""What a stage's questions searched through the engine, search by search: its ``serve_log``.

A row is a query of a call of the engine. The loop moves its questions in lock-step, so a window is
that of all that are open, and of the model's time no question has a part of its own: the seconds
of a question alone are the latency study's (``serve_log.py``). A result that the record store had
was not searched and has no row.

These are measurements: they are not equal from run to run, and no stage reads them. That is why
they are written below ``measured/``, which Git ignores, and are no output of the stage.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.serve.prefetch.engine import Observed, PrefetchEngine
from stages.types import Hits, Query

SCHEMA = pa.schema(
    [
        ("call", pa.int32()), ("qid", pa.string()), ("round", pa.int16()), ("k", pa.int32()),
        ("system", pa.string()), ("nprobe", pa.int32()), ("budget_bytes", pa.int64()),
        ("hits", pa.int32()), ("misses", pa.int32()), ("n_queries", pa.int32()),
        ("bytes_copied", pa.int64()), ("bytes_missed", pa.int64()), ("window_s", pa.float64()),
        ("t_ret", pa.float64()), ("topk_ids", pa.list_(pa.string())),
    ]
)  # fmt: skip


class Call(NamedTuple):
    """One call of the engine."""

    queries: list[Query]
    k: int
    found: list[Hits]
    seen: Observed
    budget: int
    copied: int  # bytes, since the call before


class Watched:
    """The engine as the ``Retriever`` of a run; ``calls`` has what was asked of it."""

    def __init__(self, engine: PrefetchEngine) -> None:
        self.fingerprint, self.calls = engine.fingerprint, list[Call]()
        self._engine, self._copied = engine, engine.stats()["copied_bytes"]

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """See ``stages.types.Retriever``."""
        found = self._engine.search(queries, k)
        copied = self._engine.stats()["copied_bytes"]
        new, self._copied = int(copied - self._copied), copied
        seen = self._engine.observed[-1]
        self.calls.append(Call([*queries], k, found, seen, self._engine.budget, new))
        return found


def log_table(calls: Sequence[Call], engine: PrefetchEngine, effects: pa.Table) -> pa.Table:
    """The log, call after call; within one as the queries stand, and who asked by id.

    ``round`` counts the distinct queries of a question. What no logged effect has asked for (a
    strategy without a trace) has an empty ``qid``.
    """
    askers = _askers(effects)
    rows = []
    for no, call in enumerate(calls):
        stats = call.seen.stats
        for i, query in enumerate(call.queries):
            own = {
                "call": no, "k": call.k, "system": engine.settings.strategy,
                "nprobe": engine.nprobe, "budget_bytes": call.budget,
                "hits": int(stats.hits[i]), "misses": int(stats.misses[i]),
                "n_queries": len(call.queries), "bytes_copied": call.copied,
                "bytes_missed": stats.nbytes, "window_s": call.seen.window_s,
                "t_ret": call.seen.end - call.seen.start,
                "topk_ids": [hit.docid for hit in call.found[i]],
            }  # fmt: skip
            asking = askers.get(query, [("", 0)])
            rows += [own | {"qid": qid, "round": round_} for qid, round_ in asking]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _askers(effects: pa.Table) -> dict[Query, list[tuple[str, int]]]:
    """Who asked for a query: (qid, which of its distinct queries that was)."""
    rounds: dict[str, dict[Query, int]] = defaultdict(dict)
    rows: list[dict[str, Any]] = effects.select(["qid", "kind", "request"]).to_pylist()
    for row in rows:
        if row["kind"] == "Search":
            query = json.loads(row["request"])["query"]
            query = query if isinstance(query, str) else tuple(query)
            own = rounds[row["qid"]]
            own.setdefault(query, len(own))
    askers: dict[Query, list[tuple[str, int]]] = defaultdict(list)
    for qid, own in sorted(rounds.items()):
        for query, no in own.items():
            askers[query].append((qid, no))
    return dict(askers)


def write_log(log: pa.Table, folder: Path) -> None:
    """``serve_log.parquet``; another run's is replaced at once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "serve_log.parquet"
    pq.write_table(log, path.with_suffix(".tmp"), compression="zstd")
    path.with_suffix(".tmp").rename(path)
