"""What a strategy found round by round, and how its questions ended.

A round is what a strategy yields at once with a search for passages in it; the passages that these
searches gave count for it and for all later ones, also where the strategy shows only the latest.
Read from the effect log, so it needs no account of the strategy's own. The log has what an index
gave; of passages beyond the budget (``max_docs``) the strategy was told nothing, and they count as
little here.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from stages.runs import parent


def support_by_round(
    effects: pa.Table, relevant: Mapping[str, set[str]], qids: Sequence[str],
    max_docs: int | None = None,
) -> list[float]:  # fmt: skip
    """Mean share of the relevant documents that were found within 1, 2, ... rounds.

    Over the judged questions among ``qids``; one that ended earlier keeps what it had found, and
    one that never searched has 0. Nothing if no passage was searched for.
    """
    judged = [q for q in qids if relevant.get(q)]
    rounds = _rounds(effects, max_docs)
    found = {q: [set(map(parent, r)) for r in rounds[q]] for q in rounds if relevant.get(q)}
    if not judged or not any(found.values()):
        return []
    longest = max(map(len, found.values()))
    curves = []
    for qid in judged:
        docs = list(accumulate(found.get(qid, []), set.union, initial=set()))[1:] or [set()]
        shares = [len(seen & relevant[qid]) / len(relevant[qid]) for seen in docs]
        curves.append(shares + shares[-1:] * (longest - len(shares)))
    return [round(sum(at) / len(judged), 6) for at in zip(*curves, strict=True)]


def _rounds(effects: pa.Table, max_docs: int | None) -> dict[str, list[list[str]]]:
    """The new passages of each question's rounds; searches for documents are the run's alone."""
    columns = [effects[c].to_pylist() for c in ("qid", "turn", "kind", "request", "result")]
    rounds: dict[str, dict[int, list[str]]] = {}  # by turn, in order
    seen: dict[str, set[str]] = {}
    for qid, turn, kind, request, result in zip(*columns, strict=True):
        if kind == "Search" and json.loads(request)["unit"] == "passage":
            new = rounds.setdefault(qid, {}).setdefault(turn, [])
            known = seen.setdefault(qid, set())
            hits = json.loads(result)
            for docid, _ in hits["hits"] if isinstance(hits, dict) else hits:  # a walk tells more
                if docid not in known and (max_docs is None or len(known) < max_docs):
                    known.add(docid)
                    new.append(docid)
    return {qid: list(of_question.values()) for qid, of_question in rounds.items()}


def count_consumed(
    effects: pa.Table, qids: Sequence[str], max_docs: int | None = None
) -> dict[str, float]:
    """Per question of ``qids``: ``docs``, the different passages that its searches told it; and
    where a generator was the retriever ``walked``, the tokens that it read for them. Nothing if no
    passage was searched for."""
    rounds = _rounds(effects, max_docs)
    if not any(rounds.get(q) for q in qids):
        return {}
    n = len(qids)
    docs = sum(len(new) for q in qids for new in rounds.get(q, []))
    asked = set(qids)
    columns = (effects[c].to_pylist() for c in ("qid", "kind", "tokens_in"))
    rows = zip(*columns, strict=True)
    walked = sum(tokens for qid, kind, tokens in rows if kind == "Search" and qid in asked)
    return {"docs": round(docs / n, 6)} | ({"walked": round(walked / n, 6)} if walked else {})


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
