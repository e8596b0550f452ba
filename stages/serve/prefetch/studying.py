"""Conditions side by side: the same recorded questions, served one way and another, in turn.

What is compared is a product of lists: when clusters are fetched, nprobe, how many requests are
served together and in which order, the budget of a window. Every condition has an engine of its
own, with a hot tier of its own.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from stages.asking import Asking
from stages.digest import uniform
from stages.effects import Question, Steps
from stages.errors import QuarryError
from stages.serve.asked import pick_questions
from stages.serve.prefetch.calibrate import MIB, Calibration, calibrate
from stages.serve.prefetch.engine import PrefetchEngine, open_engine
from stages.serve.prefetch.replaying import Recorded, Round, replay
from stages.serve.prefetch.schedule import arrival_batches, micro_batches
from stages.serve.prefetch.serve_log import Condition, Served

log = logging.getLogger(__name__)


class Bench(NamedTuple):
    """What all conditions of a study share."""

    index: Path
    encoder: Path | None
    settings: Mapping[str, Any]  # of the engine, but for what a condition says
    strategy: Callable[[Question], Steps]
    asking: Asking  # its tools have the generator; the retriever is the condition's engine
    recorded: Recorded

    def open(self, c: Condition) -> PrefetchEngine:
        """The engine of a condition, warm: what it loads at its first query is nobody's time."""
        engine = open_engine(
            self.index, self.encoder, strategy=c.system, nprobe=c.nprobe or None,
            budget=c.budget_bytes, **self.settings,
        )  # fmt: skip
        engine.search(["warm up"], 1)
        engine.observed.clear()
        return engine

    def serve(self, engine: PrefetchEngine, questions: Sequence[Question]) -> list[Round]:
        """The rounds of one micro-batch. Without a throttle, the file's pages are dropped first."""
        if self.settings.get("throttle") is None:
            engine.forget()
        tools = self.asking.tools._replace(retriever=engine, prefetch=engine.prefetch)
        asking = self.asking._replace(tools=tools)
        return replay(questions, self.strategy, asking, engine, self.recorded)


def pick(
    recorded: Recorded, queries: pa.Table, n_measured: int, n_calibrated: int
) -> tuple[list[Question], list[Question]]:
    """Questions to measure and others to calibrate on, of those of the run; by hash of the qid.

    Raises:
        QuarryError: the run has too few.
    """
    there = {q.qid: q for q in pick_questions(queries, "all", None)}
    qids = sorted((q for q in recorded.qids if q in there), key=lambda q: (uniform(q), q))
    need = n_measured + n_calibrated
    if len(qids) < need:
        raise QuarryError(
            f"measure: the run '{recorded.name}' has {len(qids)} questions of its corpus; "
            f"{n_measured} to measure and {n_calibrated} to calibrate on are {need}. Ask for "
            f"fewer, or record more."
        )
    picked = [there[qid] for qid in qids[:need]]
    return picked[:n_measured], picked[n_measured:]


def plan_conditions(
    *, systems: Sequence[str], nprobe: Sequence[int | None], batch: Sequence[int],
    order: Sequence[str], budget: Mapping[int, Sequence[int]],
) -> list[Condition]:  # fmt: skip
    """Their product; a label says what of it has several values.

    ``budget`` has the bytes of a window for each size of ``batch``: eight requests write longer
    than one. A condition that copies nothing has no budget, and is there once for all of them.
    """
    found: dict[str, Condition] = {}
    for n, g, o in product(nprobe, batch, order):
        for b, system in product(budget[g], systems):
            own = 0 if system == "none" else b
            said = [
                f"nprobe {n}" if len(nprobe) > 1 else "",
                f"batch {g}" if len(batch) > 1 else "",
                o if len(order) > 1 else "",
                f"{b / MIB:g} MiB" if len(budget[g]) > 1 and own else "",
            ]
            label = " ".join([system, *filter(None, said)])
            found.setdefault(label, Condition(label, system, n or 0, g, o, own))
    return list(found.values())


def serve_all(
    bench: Bench, conditions: Sequence[Condition], questions: Sequence[Question]
) -> list[Served]:
    """Every question under every condition, in turn: the one that is behind goes next.

    Of several that are behind, the order changes each time round: A B B A.
    """
    served, engines, waiting = [], [], []
    try:
        for c in conditions:
            engines.append(bench.open(c))
            groups = arrival_batches(len(questions), c.batch)
            if c.order == "similar":
                vectors = engines[-1].vectors([q.text for q in questions])
                groups = micro_batches(vectors, c.batch)
            waiting.append(deque([questions[i] for i in group] for group in groups))
            served.append(Served(c._replace(nprobe=engines[-1].nprobe), []))
        done, turn = [0] * len(engines), list(range(len(engines)))
        while any(waiting):
            least = min(done[i] for i in turn if waiting[i])
            for i in [i for i in turn if waiting[i] and done[i] == least]:
                batch = waiting[i].popleft()
                served[i].batches.append(bench.serve(engines[i], batch))
                done[i] += len(batch)
            turn.reverse()
            log.info("%d of %d questions under all conditions", min(done), len(questions))
    finally:
        for engine in engines:
            engine.close()
    return served


def calibrate_on(
    bench: Bench, questions: Sequence[Question], nprobe: int | None, batch: int = 1
) -> Calibration:
    """The calibration of these questions, replayed with lookahead and without, in turn.

    ``batch`` of them are served together: a window and its clusters are those of all. Questions
    that are left over are not asked: a smaller batch has a shorter window.
    """
    room = int(bench.settings["hot_bytes"])
    ahead = bench.open(Condition("", "gradual", nprobe or 0, batch, "arrival", room))
    try:
        behind = bench.open(Condition("", "none", nprobe or 0, batch, "arrival", 0))
        try:
            whole = len(questions) // batch * batch
            for i, group in enumerate(arrival_batches(whole, batch)):
                for engine in (ahead, behind) if i % 2 == 0 else (behind, ahead):
                    bench.serve(engine, [questions[j] for j in group])
            return calibrate(list(ahead.observed), list(behind.observed), ahead.file, room)
        finally:
            behind.close()
    finally:
        ahead.close()
