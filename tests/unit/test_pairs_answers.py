"""Sampled answers become preference groups: what is right, what is dropped, what is kept."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from loop_fakes import FakeLLM, FakeSearch

from stages.errors import QuarryError
from stages.pairs import Inputs
from stages.pairs.answers import Params, Sampled, build, is_correct, pick_questions, rank_answers
from stages.preference import read_groups
from stages.prompts import rag_prompt
from stages.records import RecordStore
from stages.tables import empty_table, table
from stages.tools import Tools
from stages.types import Hit, Passage

VALUES = {
    "recipe": "answers", "corpus": "c", "index": "i", "encoder": "none", "model": "m",
    "questions": 3, "dev_questions": 1, "samples": 2, "seed": 5,
}  # fmt: skip
QUESTION = {"qid": "q", "text": "Which tree?", "split": "train", "answers": ["Oak", "the oak"]}


def params(**changes: Any) -> Params:
    return Params.model_validate(VALUES | changes)


def ranked(*texts: str, **changes: Any) -> tuple[list, list, dict]:
    """One group's texts and ranks (or none), and the counts of its kind."""
    sampled = {"q": [Sampled("rag", ["d#0"], "Which tree?\nAnswer:", list(texts))]}
    groups, candidates, stats = rank_answers([QUESTION], sampled, params(**changes))
    return groups, [(c["text"], c["rank"], c["label"]) for c in candidates], stats["by_kind"]["rag"]


def test_right_answers_come_first_and_equal_texts_once() -> None:
    groups, candidates, count = ranked(" elm", " Oak", " elm", "The oak\n")
    assert candidates == [(" elm", 1, -1), (" Oak", 0, 1), (" The oak", 0, 1)]
    assert groups[0]["docids"] == ["d#0"] and groups[0]["split"] == "train"
    assert count == {"samples": 4, "empty": 0, "correct": 2, "kept": 1, "kept_with_gold": 0}


def test_the_gold_answer_joins_only_where_no_sample_is_right() -> None:
    _, candidates, count = ranked(" elm", " ash")
    assert candidates == [(" Oak", 0, 1), (" elm", 1, -1), (" ash", 1, -1)]
    assert count["kept_with_gold"] == 1
    assert ranked(" elm", " ash", include_gold=False)[0] == []


def test_a_gold_answer_is_marked_as_nobodys_sample() -> None:
    sampled = {"q": [Sampled("closed", [], "p", [" elm"])]}
    _, candidates, _ = rank_answers([QUESTION], sampled, params())
    assert [c["temperature"] for c in candidates] == [-1.0, 0.8]


def test_groups_that_teach_nothing_are_dropped_and_counted() -> None:
    assert ranked(" Oak", " oak.")[2]["dropped_all_right"] == 1
    assert ranked(" elm", include_gold=False)[2]["dropped_none_right"] == 1
    groups, _, count = ranked("", "  \n")
    assert not groups and count["dropped_no_answer"] == 1 and count["empty"] == 2


def test_nearly_right_counts_from_the_f1_that_the_entry_says() -> None:
    # "oak tree" against "the oak": P = 1/2, R = 1/1, F1 = 2/3
    assert not is_correct("oak tree", ["the oak"], 0.8)
    assert is_correct("oak tree", ["the oak"], 2 / 3)


def queries(n: int) -> pa.Table:
    splits = ["train", "dev", "test"]
    return table("queries", [
        {"qid": f"q{i}", "text": f"What is {i}?", "split": splits[i % 3],
         "answers": [str(i)] if i % 4 else [], "options": [], "meta": "{}"}
        for i in range(n)
    ])  # fmt: skip


def test_the_questions_are_those_of_smallest_hash_that_have_an_answer() -> None:
    picked = pick_questions(queries(60), "train", 5)
    assert all(q["split"] == "train" and q["answers"] for q in picked)
    assert pick_questions(queries(60), "train", 6)[:5] == picked
    assert pick_questions(queries(60), "dev", 0) == []


def test_questions_with_options_are_left_out_and_counted(tmp_path: Path) -> None:
    """Serving chooses there and writes nothing: a sampled text is no answer to such a question."""
    rows = queries(60).to_pylist()
    chosen = {q["qid"] for q in pick_questions(queries(60), "train", 2)}
    for q in rows:
        q["options"] = ["yes", "no"] if q["qid"] in chosen else []
    mixed = table("queries", rows)
    assert not chosen & {q["qid"] for q in pick_questions(mixed, "train", 60)}
    with RecordStore(tmp_path) as store:
        built = build(
            params(), inputs(mixed, passages(9)), Tools(FakeLLM(), FakeSearch(n=9)), store
        )
        assert not chosen & set(built.groups["qid"].to_pylist())
        assert built.stats["questions"] == 3 + 1, "others take their place"
        assert built.stats["left_out_options"] == {"train": 2, "dev": 0}
        only = table("queries", [q | {"options": ["yes", "no"]} for q in rows])
        with pytest.raises(QuarryError, match="that is not multiple choice"):
            build(params(), inputs(only, passages(9)), Tools(FakeLLM(), FakeSearch(n=9)), store)


def inputs(queries: pa.Table, passages: pa.Table) -> Inputs:
    return Inputs(queries, passages, empty_table("qrels"))


def passages(n: int) -> pa.Table:
    return table("passages", [
        {"docid": f"d{i}#0", "parent": f"d{i}", "seq": 0, "title": f"T{i}", "text": f"text {i}",
         "start": 0, "end": 6, "text_hash": ""}
        for i in range(n)
    ])  # fmt: skip


def test_each_question_is_asked_with_and_without_its_passages_and_twice_costs_nothing(
    tmp_path: Path,
) -> None:
    llm, index = FakeLLM(), FakeSearch(n=9)
    with RecordStore(tmp_path) as store:
        built = build(params(), inputs(queries(60), passages(9)), Tools(llm, index), store)
        asked = [r for batch in llm.batches for r in batch]
        again = build(params(), inputs(queries(60), passages(9)), Tools(llm, index), store)
    assert len(asked) == (3 + 1) * 2 * 2 == llm.n_calls, "4 questions, 2 conditions, 2 samples"
    assert {r.temperature for r in asked} == {0.8} and {r.max_tokens for r in asked} == {16}
    assert len({r.seed for r in asked}) == len(asked)
    assert built.groups.equals(again.groups) and built.candidates.equals(again.candidates)
    assert again.facts["reused"] == len(asked) and again.facts["sampled"] == 0

    groups = read_groups(built.groups, built.candidates)
    assert {g.kind for g in groups} == {"rag", "closed"}
    assert sorted({g.split for g in groups}) == ["dev", "train"]
    row = next(g for g in built.groups.to_pylist() if g["kind"] == "rag")
    text = next(q["text"] for q in queries(60).to_pylist() if q["qid"] == row["qid"])
    shown = [Passage(d, f"T{d[1]}", f"text {d[1]}") for d in row["docids"]]
    assert row["prompt"] == rag_prompt(text, shown), "the prompt that serving asks"
    models = {(c["model"], c["temperature"] < 0) for c in built.candidates.to_pylist()}
    assert models == {("fake-llm", False), ("", True)}
    assert json.loads(row["meta"])["prompt_version"]


def test_a_question_that_finds_nothing_is_asked_without_passages_alone(tmp_path: Path) -> None:
    class Nothing(FakeSearch):
        def search(self, queries, k) -> list[list[Hit]]:
            return [[] for _ in queries]

    with RecordStore(tmp_path) as store:
        built = build(
            params(), inputs(queries(60), passages(0)), Tools(FakeLLM(), Nothing()), store
        )
    assert set(built.groups["kind"].to_pylist()) == {"closed"}


def test_a_corpus_without_train_answers_is_an_error(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store, pytest.raises(QuarryError, match="no question with an"):
        build(params(), inputs(queries(0), passages(1)), Tools(FakeLLM(), FakeSearch()), store)
