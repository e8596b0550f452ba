"""Measures of answers, question by question."""

import json

import pyarrow as pa
import pytest

from stages import tables
from stages.evaluate.answering import item_recall, measure_answers, support_recall

BLANK = {
    "answer": "", "memory": "", "docids": [], "rounds": 1, "llm_calls": 1, "searches": 0,
    "tokens_in": 0, "tokens_out": 0, "stop_reason": "fixed", "error": "",
}  # fmt: skip


def answers(**rows: dict) -> pa.Table:
    return tables.table("answers", [{"qid": qid} | BLANK | row for qid, row in rows.items()])


def queries(**golds: list[str]) -> pa.Table:
    """Questions by qid; those named list... have list answers."""
    return tables.table(
        "queries",
        [
            {"qid": q, "text": q, "split": "test", "answers": g, "options": []}
            | {"meta": json.dumps({"answer_type": "list"}) if q.startswith("list") else "{}"}
            for q, g in golds.items()
        ],
    )


def test_em_and_f1_take_the_best_gold_answer():
    got = measure_answers(
        answers(q={"answer": "The Danube river"}), queries(q=["the Danube", "Donau"])
    )
    precision, recall = 1 / 2, 1 / 1  # {danube, river} against {danube}
    assert got["EM"] == {"q": 0.0}
    assert got["F1"] == {"q": pytest.approx(2 * precision * recall / (precision + recall))}


def test_a_list_has_item_recall_and_no_em():
    got = measure_answers(
        answers(list1={"answer": "Bonn, Paris and Rome"}),
        queries(list1=["Paris", "Rome", "Oslo"]),
    )
    assert got == {"EM": {}, "F1": {}, "ItemR": {"list1": 2 / 3}}


def test_an_item_is_found_as_whole_words_only():
    assert item_recall("Niger and Mali", ["Nigeria", "Mali"]) == 1 / 2
    assert item_recall("United States of America", ["united states", "America"]) == 2 / 2


def test_an_item_without_words_is_never_found():
    assert item_recall("the", ["!", "the"]) == 0.0


def test_questions_without_gold_are_left_out_and_failed_ones_count():
    got = measure_answers(
        answers(a={"answer": "x"}, b={"error": "timeout"}, c={"answer": "x"}),
        queries(a=["x"], b=["x"], c=[]),
    )
    assert got["EM"] == {"a": 1.0, "b": 0.0}


def test_a_system_that_only_ranks_has_no_answers():
    ranks = answers(q={"llm_calls": 0})
    fused = answers(q={"llm_calls": 3, "stop_reason": "fused"})
    assert measure_answers(ranks, queries(q=["x"])) == {}
    assert measure_answers(fused, queries(q=["x"])) == {}
    silent = answers(q={"llm_calls": 1})
    assert measure_answers(silent, queries(q=["x"]))["EM"] == {"q": 0.0}


def test_support_recall_counts_documents_not_passages():
    shown = answers(q={"docids": ["d1#0", "d1#4", "d2#1", "a#b#0"]})
    assert support_recall(shown, {"q": {"d1", "a#b", "d3", "d4"}}) == {"q": 2 / 4}


def test_support_recall_needs_judgements_and_a_system_that_shows_passages():
    assert support_recall(answers(q={"docids": ["d#0"]}), {}) == {}
    assert support_recall(answers(q={}), {"q": {"d"}}) == {}
    one_of_two = answers(q={"docids": ["d#0"]}, r={})
    assert support_recall(one_of_two, {"q": {"d"}, "r": {"d"}}) == {"q": 1.0, "r": 0.0}
