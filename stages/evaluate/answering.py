"""Measures of answers, one number per question.

``EM`` and ``F1`` against the best gold answer (SQuAD). A question whose gold answers are the
items of a list (``answer_type`` list or dict in its meta) has ``ItemR`` instead: the share of
the items that the answer names, as in FanOutQA's loose accuracy (Zhu et al., ACL 2024).
``SupportR`` is the share of the relevant documents among those whose passages were shown.
A question without gold answers, or without relevant documents, is not in the result.
"""

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from stages.answers import exact_match, normalise, token_f1
from stages.runs import parent

LISTS = {"list", "dict"}  # answer types whose gold answers are all wanted
PerQuestion = dict[str, float]


def item_recall(prediction: str, items: Sequence[str]) -> float:
    """The share of the items whose normalised words stand next to each other in the answer.

    An item without words after normalisation is never found.
    """
    said = f" {normalise(prediction)} "
    wanted = [normalise(item) for item in items]
    return sum(f" {item} " in said for item in wanted if item) / len(wanted)


def measure_answers(answers: pa.Table, queries: pa.Table) -> dict[str, PerQuestion]:
    """EM, F1 and ItemR of a system's answers: {measure: {qid: value}}.

    Nothing if the system never answered: it only retrieves. A failed question has an empty
    answer and counts.
    """
    if not has_answers(answers):
        return {}
    gold = {q["qid"]: q for q in queries.select(["qid", "answers", "meta"]).to_pylist()}
    values: dict[str, PerQuestion] = {"EM": {}, "F1": {}, "ItemR": {}}
    for qid, answer in zip(*(answers[c].to_pylist() for c in ("qid", "answer")), strict=True):
        golds = gold[qid]["answers"] if qid in gold else None
        if not golds:
            continue
        if json.loads(gold[qid]["meta"] or "{}").get("answer_type") in LISTS:
            values["ItemR"][qid] = item_recall(answer, golds)
        else:
            values["EM"][qid] = exact_match(answer, golds)
            values["F1"][qid] = token_f1(answer, golds)
    return values


def has_answers(answers: pa.Table) -> bool:
    """Whether the system answers questions, and does not only rank: it gave one, or failed to.

    A fused run's calls of a model are those of the runs in it.
    """
    rows = answers.select(["answer", "llm_calls", "stop_reason", "error"]).to_pylist()
    return any(
        r["answer"] or r["error"] or (r["llm_calls"] and r["stop_reason"] != "fused") for r in rows
    )


def support_recall(answers: pa.Table, relevant: Mapping[str, set[str]]) -> PerQuestion:
    """The share of a question's relevant documents whose passages were shown to the reader.

    ``relevant`` holds the documents per question. Nothing if no passage was ever shown.
    """
    shown = {
        qid: {parent(d) for d in docids or ()}
        for qid, docids in zip(*(answers[c].to_pylist() for c in ("qid", "docids")), strict=True)
    }
    if not any(shown.values()):
        return {}
    return {
        qid: len(docs & relevant[qid]) / len(relevant[qid])
        for qid, docs in shown.items()
        if relevant.get(qid)
    }
