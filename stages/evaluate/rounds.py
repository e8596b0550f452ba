"""What a strategy found round by round, and how its questions ended.

A round is what a strategy yields at once with a search for passages in it; the passages that these
searches gave count for it and for all later ones, also where the strategy shows only the latest.
Read from the effect log, so it needs no account of the strategy's own.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from stages.runs import parent


def support_by_round(
    effects: pa.Table, relevant: Mapping[str, set[str]], qids: Sequence[str]
) -> list[float]:
    """Mean share of the relevant documents that were found within 1, 2, ... rounds.

    Over the judged questions among ``qids``; one that ended earlier keeps what it had found, and
    one that never searched has 0. Nothing if no passage was searched for.
    """
    judged = [q for q in qids if relevant.get(q)]
    found = {q: rounds for q, rounds in _rounds(effects).items() if relevant.get(q)}
    if not judged or not any(found.values()):
        return []
    longest = max(map(len, found.values()))
    curves = []
    for qid in judged:
        docs = list(accumulate(found.get(qid, []), set.union, initial=set()))[1:] or [set()]
        shares = [len(seen & relevant[qid]) / len(relevant[qid]) for seen in docs]
        curves.append(shares + shares[-1:] * (longest - len(shares)))
    return [round(sum(at) / len(judged), 6) for at in zip(*curves, strict=True)]


def _rounds(effects: pa.Table) -> dict[str, list[set[str]]]:
    """The documents of each question's rounds; searches for documents are the run's, not shown."""
    columns = [effects[c].to_pylist() for c in ("qid", "turn", "kind", "request", "result")]
    rounds: dict[str, dict[int, set[str]]] = {}  # by turn, in order
    for qid, turn, kind, request, result in zip(*columns, strict=True):
        if kind == "Search" and json.loads(request)["unit"] == "passage":
            found = rounds.setdefault(qid, {}).setdefault(turn, set())
            found.update(parent(docid) for docid, _ in json.loads(result))
    return {qid: list(of_question.values()) for qid, of_question in rounds.items()}


def round_rows(curves: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Rows of the plot, for systems of which some question searched twice; all of one length.

    A system with fewer rounds stays where it ended.
    """
    longest = max(map(len, curves.values()), default=0)
    if longest < 2:
        return []
    return [
        {"system": system, "round": n, "recall": recall}
        for system, curve in curves.items()
        if curve
        for n, recall in enumerate([*curve, *curve[-1:] * (longest - len(curve))], start=1)
    ]


def count_stops(answers: pa.Table) -> dict[str, int]:
    """Questions by how they ended, most frequent first."""
    counts = Counter(answers["stop_reason"].to_pylist())
    return dict(sorted(counts.items(), key=lambda x: (-x[1], x[0])))
