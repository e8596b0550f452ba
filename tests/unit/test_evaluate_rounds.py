"""Support by round: what counts as a round, and questions that end early."""

import json
from itertools import chain
from typing import Any

import pyarrow as pa

from stages.effects import LLM, Cost, Search, Walked, write_request, write_result
from stages.evaluate.rounds import count_consumed, count_stops, round_rows, support_by_round
from stages.tables import table
from stages.types import Generation, Hit, Request


def log(**questions: str) -> pa.Table:
    """Effects by letters: a word is a search that finds these documents, "." a generation, a word
    in capitals a search for the run. What is joined by + was yielded together."""
    rows: list[dict[str, Any]] = []
    for qid, story in questions.items():
        words = [together.split("+") for together in story.split()]
        turns = [sum(map(len, words[:n])) for n, together in enumerate(words) for _ in together]
        for no, (turn, word) in enumerate(zip(turns, chain.from_iterable(words), strict=True)):
            if word == ".":
                effect, value = LLM(Request("p", 1)), Generation("t", 1, 1, "stop")
            else:
                unit = "document" if word.isupper() else "passage"
                effect = Search(word, 3, unit)
                ids = [d if unit == "document" else f"{d}#0" for d in word.lower() if d != "-"]
                value = [Hit(d, 1.0) for d in ids]
            rows.append({
                "qid": qid, "effect_no": no, "turn": turn, "kind": type(effect).__name__,
                "key": "k", "request": write_request(effect), "tokens_in": 0, "tokens_out": 0,
                "result": write_result(effect, value),
            })  # fmt: skip
    return table("effects", rows)


RELEVANT = {"q1": {"a", "b"}, "q2": {"c"}}


def test_rounds_add_up_and_a_question_that_ended_keeps_what_it_had() -> None:
    effects = log(q1="ax+AX . xb+XB .", q2="c+C .")
    # q1: 1/2, then all; q2: all in its only round
    assert support_by_round(effects, RELEVANT, ["q1", "q2"]) == [0.75, 1.0]


def test_searches_side_by_side_are_one_round() -> None:
    assert support_by_round(log(q1="a+b+AB ."), RELEVANT, ["q1"]) == [1.0]


def test_searches_one_after_the_other_are_rounds_also_without_a_generation_between() -> None:
    assert support_by_round(log(q1="a b AB"), RELEVANT, ["q1"]) == [0.5, 1.0]


def test_documents_of_the_run_are_not_what_was_shown() -> None:
    assert support_by_round(log(q1="x AB . B"), RELEVANT, ["q1"]) == [0.0]


def test_a_judged_question_that_never_searched_has_nothing_and_counts() -> None:
    assert support_by_round(log(q1="ab .", q2="."), RELEVANT, ["q1", "q2"]) == [0.5]
    assert support_by_round(log(q1="ab .", q3="c ."), RELEVANT, ["q1", "q3"]) == [1.0]


def test_without_searches_or_judgements_there_is_no_curve() -> None:
    assert support_by_round(log(q1=". ."), RELEVANT, ["q1"]) == []
    assert support_by_round(log(q1="ab"), {}, ["q1"]) == []
    assert support_by_round(table("effects", []), RELEVANT, ["q1"]) == []


def test_passages_beyond_the_budget_were_not_told() -> None:
    effects = log(q1="ax+AX . xb+XB .", q2="c+C .")
    assert support_by_round(effects, RELEVANT, ["q1", "q2"], 2) == [0.75, 0.75]
    assert support_by_round(effects, RELEVANT, ["q1", "q2"], 1) == [0.75, 0.75]
    assert support_by_round(log(q1="xy b"), RELEVANT, ["q1"], 2) == [0.0, 0.0]


def test_passages_are_consumed_once_and_within_the_budget() -> None:
    effects = log(q1="ax+AX . xb+XB .", q2="c+C .", q3="abcx . y")
    assert count_consumed(effects, ["q1", "q2"]) == {"docs": (3 + 1) / 2}
    assert count_consumed(effects, ["q1", "q2", "q3"], 2) == {"docs": round((2 + 1 + 2) / 3, 6)}
    assert count_consumed(log(q1=". ."), ["q1"]) == {} == count_consumed(effects, ["q9"])


def test_what_a_generator_read_as_the_retriever_is_told_apart() -> None:
    """Of the questions asked for, and of searches alone."""
    rows = log(q1="a+A .", q2="b+B .").to_pylist()
    for row in rows:
        if row["kind"] == "LLM":
            row["tokens_in"] = 7
        elif json.loads(row["request"])["unit"] == "passage":
            row["tokens_in"] = {"q1": 100, "q2": 40}[row["qid"]]
            hits = [Hit(*h) for h in json.loads(row["result"])]
            cost = Cost(row["tokens_in"], 3, False)
            row["result"] = write_result(Search("", 1), Walked(hits, cost))
    effects = table("effects", rows)
    assert count_consumed(effects, ["q1", "q2"]) == {"docs": 1.0, "walked": (100 + 40) / 2}
    assert count_consumed(effects, ["q2"]) == {"docs": 1.0, "walked": 40.0}
    assert support_by_round(effects, RELEVANT, ["q1", "q2"]) == [0.25]


def test_the_plot_has_every_system_to_the_longest_and_nothing_where_nobody_searched_twice() -> None:
    rows = round_rows({"one": [0.5], "two": [0.25, 0.75], "none": []})
    assert [(r["system"], r["round"], r["recall"]) for r in rows] == [
        ("one", 1, 0.5), ("one", 2, 0.5), ("two", 1, 0.25), ("two", 2, 0.75),
    ]  # fmt: skip
    assert round_rows({"one": [0.5], "other": [0.1]}) == []
    assert round_rows({}) == []


def test_endings_are_counted_the_most_frequent_first() -> None:
    row = {
        "answer": "", "memory": "", "docids": [], "rounds": 1, "llm_calls": 0, "searches": 1,
        "tokens_in": 0, "tokens_out": 0, "error": "",
    }  # fmt: skip
    stops = {"q1": "fixed", "q2": "judge", "q3": "judge"}
    rows = [row | {"qid": q, "stop_reason": s} for q, s in stops.items()]
    assert json.dumps(count_stops(table("answers", rows))) == '{"judge": 2, "fixed": 1}'
