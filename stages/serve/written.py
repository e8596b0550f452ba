"""What comes out: tables and counts of a run of the engine, and its measurements."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from stages.errors import QuarryError
from stages.loop import Answered, Loop, Tick
from stages.runs import run_table
from stages.tables import table

MOST_FAILED = 0.5  # of the questions; more means that something is wrong with the entry


def check_failures(answered: Sequence[Answered]) -> None:
    """An error if more than half of the questions failed, with the first one's reason."""
    failed = [a for a in answered if a.error]
    if len(failed) > MOST_FAILED * len(answered):
        raise QuarryError(
            f"serve: {len(failed)} of {len(answered)} questions failed; the first, "
            f"{failed[0].qid}: {failed[0].error}"
        )


def write_run(answered: Sequence[Answered], k: int) -> pa.Table:
    """Every question's documents, ranked, k at the most."""
    return run_table([a.qid for a in answered], [a.outcome.hits for a in answered], k=k)


def write_answers(answered: Sequence[Answered]) -> pa.Table:
    """One row per question; a question that failed has an error and an empty answer."""
    rows = []
    for a in answered:
        counts = {name: n for name, n in asdict(a.counts).items() if name != "docs"}
        rows.append({
            "qid": a.qid, "answer": a.outcome.answer, "memory": a.outcome.memory,
            "docids": list(a.outcome.docids), "stop_reason": a.outcome.stop_reason,
            "error": a.error, **counts,
        })  # fmt: skip
    return table("answers", rows)


def count(loop: Loop) -> dict[str, Any]:
    """Counts for stats.json: questions by how they ended, and what all of them used."""
    used: Counter[str] = Counter()
    for a in loop.answered:
        used.update(asdict(a.counts))
    return {
        "questions": len(loop.answered),
        "without_hits": sum(not a.outcome.hits for a in loop.answered),
        "stop_reasons": dict(Counter(a.outcome.stop_reason for a in loop.answered)),
        "used": dict(used),
    }


def measure(ticks: Sequence[Tick], n_questions: int, seconds: float) -> dict[str, float]:
    """Facts for the timing file.

    ``ms_per_query`` counts results that were reused at what they took when they were computed.
    """
    facts: dict[str, float] = {"effects_reused": sum(t.n_cached for t in ticks)}
    if n_questions:
        ms = 1000 * seconds + sum(t.ms_reused for t in ticks)
        facts["ms_per_query"] = round(ms / n_questions, 3)
    llm = [t for t in ticks if t.kind == "LLM" and t.n_batches]
    if llm:
        n_batches = sum(t.n_batches for t in llm)
        facts["tokens_per_s"] = round(1000 * sum(t.tokens for t in llm) / sum(t.ms for t in llm))
        facts["llm_batches"] = n_batches
        facts["requests_per_batch"] = round(
            sum(t.n_unique - t.n_cached for t in llm) / n_batches, 2
        )
    return facts
