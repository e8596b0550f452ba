"""RAR²'s pairs: which thoughts are chosen, how often, what luck does, what training is given."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from loop_fakes import FakeLLM, FakeSearch

from stages.digest import uniform
from stages.errors import QuarryError
from stages.pairs import Built, Inputs
from stages.pairs.thought_groups import (
    Answers,
    Rollout,
    cap,
    chance_of_pair,
    choose_thoughts,
    pair_up,
    pick,
)
from stages.pairs.thoughts import Params, build, is_correct
from stages.preference import derive_pairs, read_groups
from stages.prompts import rag_prompt
from stages.records import RecordStore
from stages.tables import empty_table, table
from stages.thoughts import letter_prompt, names_option, think_prompt
from stages.tools import Tools
from stages.types import Passage

VALUES = {
    "recipe": "thoughts", "corpus": "c", "index": "i", "encoder": "none", "model": "m",
    "questions": 6, "dev_questions": 2, "samples": 4, "thought_tokens": 40, "passages": 2,
    "seed": 5,
}  # fmt: skip
OPTIONS = ["ash", "oak", "elm"]
TRAIN = {
    "qid": "q",
    "text": "Which tree?",
    "split": "train",
    "answers": ["oak"],
    "options": OPTIONS,
}
MOST = {"thought": 9, "answer": 9}


def params(**changes: Any) -> Params:
    return Params.model_validate(VALUES | changes)


# -- the rules --------------------------------------------------------------------------------


def test_chosen_are_thoughts_that_are_right_with_and_without_documents() -> None:
    outcomes = [(True, True), (True, False), (False, True), (False, False), (True, True)]
    assert choose_thoughts(outcomes) == ([0, 4], [1, 2, 3])
    assert choose_thoughts([(True, True)] * 3) == ([0, 1, 2], [])
    assert choose_thoughts([(True, False), (False, True)]) == ([], [0, 1])


def paired(outcomes: list[tuple[int, int]], **values: Any) -> tuple[list, list, dict]:
    thoughts = values.pop("thoughts", [f"z{i}" for i in range(len(outcomes))])
    one = Rollout(thoughts, [(bool(a), bool(b)) for a, b in outcomes], values.pop("answers", []))
    how = {"seed": 5, "temperature": 0.8, "rejected": "uniform", "most": MOST} | values
    return pair_up([TRAIN], {"q": one}, **how)


def test_one_pair_a_question_if_both_kinds_exist() -> None:
    groups, candidates, stats = paired([(1, 1), (1, 0), (0, 1), (0, 0), (1, 1)])
    (group,) = groups
    best, worst = candidates
    assert best["text"] in (" z0", " z4") and worst["text"] in (" z1", " z2", " z3")
    assert (best["label"], best["rank"], worst["label"], worst["rank"]) == (1, 0, -1, 1)
    assert group["prompt"] == think_prompt("Which tree?", OPTIONS) and group["kind"] == "thought"
    assert stats["outcomes"] == {"00": 1, "01": 1, "10": 1, "11": 2}
    p, k = 2 / 5, 5
    assert stats["yield_expected"] == round(1 - p**k - (1 - p) ** k, 4)
    for outcomes, reason in (
        ([(1, 1)] * 3, "dropped_none_rejected"),
        ([(0, 1)] * 3, "dropped_none_chosen"),
    ):
        groups, candidates, stats = paired(outcomes)
        assert not groups and not candidates and stats["by_kind"]["thought"][reason] == 1


def test_which_of_several_is_drawn_by_the_seed_alone() -> None:
    outcomes = [(1, 1)] * 4 + [(0, 0)] * 4
    drawn = [tuple(c["text"] for c in paired(outcomes, seed=seed)[1]) for seed in range(60)]
    assert drawn == [tuple(c["text"] for c in paired(outcomes, seed=seed)[1]) for seed in range(60)]
    assert {a for a, _ in drawn} == {f" z{i}" for i in range(4)}
    assert {b for _, b in drawn} == {f" z{i}" for i in range(4, 8)}
    assert pick([7], 1, "a") == 7


def test_near_misses_may_be_preferred() -> None:
    outcomes = [(1, 1), (0, 0), (0, 0), (0, 1), (0, 0)]
    for seed in range(20):
        assert paired(outcomes, seed=seed, rejected="near_miss")[1][1]["text"] == " z3"
    plain = {paired(outcomes, seed=seed)[1][1]["text"] for seed in range(40)}
    assert plain == {" z1", " z2", " z3", " z4"}
    assert paired([(1, 1), (0, 0)], rejected="near_miss")[1][1]["text"] == " z1"


def test_empty_and_repeated_thoughts_are_no_pair() -> None:
    assert paired([(1, 1), (0, 0)], thoughts=["", "z"])[0] == []
    assert paired([(1, 1), (0, 0)], thoughts=["z", ""])[0] == []
    assert paired([(1, 1), (0, 0)], thoughts=["z", "z"])[0] == [], "right once, wrong once"


def answers(source: str, *texts: str) -> Answers:
    right = [is_correct(t, ["oak"], OPTIONS, 0.8) for t in texts]
    return Answers(source, ["d#0"], f"prompt {source}", list(texts), right)


def test_right_answers_are_paired_with_wrong_ones_for_either_set_of_documents() -> None:
    sets = [answers("chosen", " B", "A", "B"), answers("rejected", "A or B", "(B)", "")]
    groups, candidates, stats = paired([(0, 0)], answers=sets)
    assert [g["kind"] for g in groups] == ["answer", "answer"]
    assert [c["text"] for c in candidates] == [" B", " A", " (B)", " A or B"]
    assert [c["label"] for c in candidates] == [1, -1, 1, -1]
    count = stats["by_kind"]["answer"]
    assert (count["documents_of_chosen"], count["documents_of_rejected"]) == (1, 1)
    assert (count["answers"], count["right"]) == (6, 3)
    for texts, reason in ((("B", "B"), "dropped_none_wrong"), (("A", ""), "dropped_none_right")):
        _, _, stats = paired([(0, 0)], answers=[answers("chosen", *texts)])
        assert stats["by_kind"]["answer"][reason] == 1


@pytest.mark.parametrize(
    ("text", "options", "right"),
    [
        ("B", OPTIONS, True), ("The answer is (B).", OPTIONS, True), ("oak", OPTIONS, False),
        ("D", OPTIONS, False), ("", OPTIONS, False), ("The oak", (), True), ("elm", (), False),
        ("", (), False),
    ],
)  # fmt: skip
def test_an_answer_is_right_by_its_letter_or_its_text(text, options, right) -> None:
    assert is_correct(text, ["oak"], options, 0.8) is right


# -- yield and luck ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "p", "expected"),
    [
        (2, 0.2, 0.32), (2, 0.5, 0.50), (2, 0.8, 0.32), (4, 0.2, 0.5888), (4, 0.5, 0.875),
        (4, 0.8, 0.5888), (8, 0.2, 0.8322), (8, 0.5, 0.9922), (8, 0.8, 0.8322),
    ],
)  # fmt: skip
def test_simulated_outcomes_reproduce_the_yield_table(k, p, expected) -> None:
    assert chance_of_pair(p, k) == pytest.approx(expected, abs=5e-5)
    draw = random.Random(f"{k} {p}")
    n = 4000
    kept = 0
    for _ in range(n):
        a, b = choose_thoughts([(draw.random() < p, True) for _ in range(k)])
        kept += bool(a and b)
    # four standard errors of a share of n
    assert abs(kept / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 1e-9


class Guesser(FakeLLM):
    """Thoughts without content; answers are letters drawn by prompt and seed, of m options."""

    m = 4

    def _text(self, r):
        label = r.prompt.rpartition("\n")[2]
        i = int(uniform("guess", r.prompt, str(r.seed)) * self.m)
        text = f"Well {uniform(str(r.seed))}." if label == "Thought:" else f" {'ABCDEFGH'[i]}"
        return super()._text(r)._replace(text=text)


@pytest.mark.parametrize("repeats", [1, 2])
def test_luck_is_one_in_m_squared_and_repeats_square_it_again(tmp_path: Path, repeats) -> None:
    """m = 4: 6.25 % of content-free thoughts are chosen, with two repeats 0.39 %."""
    n, k = 150, 8
    rows = [TRAIN | {"qid": f"q{i}", "text": f"Which {i}?", "options": ["oak", "ash", "elm", "fir"]}
            for i in range(n)]  # fmt: skip
    values = {"questions": n, "dev_questions": 0, "samples": k, "require_repeats": repeats}
    built = made(tmp_path, rows, Guesser(), **values)
    outcomes = built.stats["outcomes"]
    p = (1 / 4**2) ** repeats
    assert sum(outcomes.values()) == n * k
    assert abs(outcomes.get("11", 0) / (n * k) - p) < 4 * (p * (1 - p) / (n * k)) ** 0.5
    if repeats == 1:
        kept = built.stats["by_kind"]["thought"]["kept"] / n
        assert abs(kept - 0.403) < 4 * (0.403 * 0.597 / n) ** 0.5, "some lucky one of eight: 40.3 %"


# -- the whole recipe -------------------------------------------------------------------------


def queries(n: int, options: list[str] = OPTIONS) -> list[dict[str, Any]]:
    return [
        {"qid": f"q{i:02}", "text": f"Which tree is {i}?", "split": ("train", "dev", "test")[i % 3],
         "answers": ["oak"] if i % 7 else [], "options": options}
        for i in range(n)
    ]  # fmt: skip


def passages(n: int) -> pa.Table:
    return table("passages", [
        {"docid": f"d{i}#0", "parent": f"d{i}", "seq": 0, "title": f"T{i}", "text": f"text {i}",
         "start": 0, "end": 6, "text_hash": ""}
        for i in range(n)
    ])  # fmt: skip


def made(
    folder: Path, rows: list[dict[str, Any]], llm: FakeLLM, index: Any = None, **values: Any
) -> Built:
    table_of = table("queries", [row | {"meta": "{}"} for row in rows])
    inputs = Inputs(table_of, passages(9), empty_table("qrels"))
    with RecordStore(folder) as store:
        return build(params(**values), inputs, Tools(llm, index or FakeSearch(9)), store)


class Tree(Guesser):
    """Letters of three options, or words; some thoughts name an option, some are empty."""

    m = 3

    def _text(self, r):
        made = super()._text(r)
        if r.prompt.endswith("Thought:"):
            at = int(uniform(str(r.seed)) * 4)
            said = ("", "It is (B). A tree.", f"Leaves {r.seed % 97}.", "option c")[at]
            return made._replace(text=said)
        if "Options:" not in r.prompt:
            return made._replace(text=(" oak", " elm")[int(uniform(r.prompt, str(r.seed)) * 2)])
        return made


@pytest.mark.parametrize("options", [OPTIONS, []])
def test_groups_are_what_serving_asks_and_training_reads(tmp_path: Path, options) -> None:
    llm = Tree()
    rows = queries(90, options)
    built = made(tmp_path, rows, llm, questions=20, dev_questions=8)
    again = made(tmp_path, rows, Tree(), questions=20, dev_questions=8)
    assert built.groups.equals(again.groups) and built.candidates.equals(again.candidates)
    assert again.facts["sampled"] == 0 and built.facts["sampled"] > 0, "resumed from the store"

    groups = read_groups(built.groups, built.candidates)
    assert {g.kind for g in groups} == {"thought", "answer"}
    assert {g.split for g in groups} == {"train", "dev"}
    assert derive_pairs(groups, "best_worst").num_rows == len(groups), "one pair each"
    text_of = {row["qid"]: row["text"] for row in rows}
    split_of = {row["qid"]: row["split"] for row in rows}
    for row in built.groups.to_pylist():
        text = text_of[row["qid"]]
        assert row["split"] == split_of[row["qid"]] != "test", (
            "no evaluation question is trained on"
        )
        shown = [Passage(d, f"T{d[1]}", f"text {d[1]}") for d in row["docids"]]
        if row["kind"] == "thought":
            assert row["prompt"] == think_prompt(text, options) and not shown
        elif options:
            assert row["prompt"] == letter_prompt(text, options, shown) and len(shown) == 2
        else:
            assert row["prompt"] == rag_prompt(text, shown)
    by_id = {g["group_id"]: g for g in built.groups.to_pylist()}
    for c in built.candidates.to_pylist():
        assert c["text"].startswith(" ") and c["model"] == "fake-llm"
        assert c["temperature"] == pytest.approx(0.8)
        if options and by_id[c["group_id"]]["kind"] == "thought":
            assert not names_option(c["text"], len(options))
    assert built.stats["questions"] == 28 and built.stats["failed"] == 0
    asked = [r for batch in llm.batches for r in batch]
    assert {r.temperature for r in asked} == {0.8} and len({(r.prompt, r.seed) for r in asked}) > 99


def test_the_number_of_calls_follows_from_samples_and_repeats(tmp_path: Path) -> None:
    """K thoughts, r K answers from them, r K from what they find, K to each of the prompts."""
    for r in (1, 3):
        llm = FakeLLM()  # nothing is right: one set of documents, of a rejected thought
        made(tmp_path / str(r), queries(9), llm, questions=1, dev_questions=0, require_repeats=r)
        assert llm.n_calls == 4 + 4 * r + 4 * r + 4


def test_a_thought_that_finds_nothing_is_searched_by_the_question(tmp_path: Path) -> None:
    class OnlyQuestions(FakeSearch):
        def search(self, queries, k):
            self.batches.append(list(queries))
            found = super().search(queries, k)
            return [
                hits if re.match("Which tree", q) else []
                for q, hits in zip(queries, found, strict=True)
            ]

    index = OnlyQuestions(9)
    built = made(tmp_path, queries(30), Tree(), index)
    answers = [g for g in built.groups.to_pylist() if g["kind"] == "answer"]
    assert answers and all(len(g["docids"]) == 2 for g in answers)

    class Nothing(FakeSearch):
        def search(self, queries, k):
            return [[] for _ in queries]

    built = made(tmp_path / "n", queries(30), Tree(), Nothing())
    assert all(g["docids"] == [] for g in built.groups.to_pylist()) and built.stats["failed"] == 0


def test_groups_of_training_are_capped_by_kind_and_dev_ones_are_not(tmp_path: Path) -> None:
    rows = queries(200)
    how = {"questions": 40, "dev_questions": 20}
    whole = made(tmp_path, rows, Tree(), **how)
    few = made(tmp_path, rows, Tree(), **how, most_thoughts=2, most_answers=3)

    def count(built: Built, kind: str, split: str) -> int:
        return sum((g["kind"], g["split"]) == (kind, split) for g in built.groups.to_pylist())

    assert (count(few, "thought", "train"), count(few, "answer", "train")) == (2, 3)
    assert count(whole, "thought", "train") > 2 and count(whole, "answer", "train") > 3
    for kind in ("thought", "answer"):
        assert count(few, kind, "dev") == count(whole, kind, "dev") > 0
    assert cap([], {"thought": 1, "answer": 1}, 5) == []


def test_a_corpus_without_train_answers_and_a_model_that_fails_are_errors(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match="no question with an answer in split train"):
        made(tmp_path, [row | {"split": "test"} for row in queries(9)], FakeLLM())
    long = [row | {"text": "word " * 1000} for row in queries(9)]
    with pytest.raises(QuarryError, match="questions failed; the first"):
        made(tmp_path, long, FakeLLM())


def test_what_was_drawn_says_which_samples_were_taken(tmp_path: Path) -> None:
    built = made(tmp_path, queries(90), Tree(), questions=20)
    for group in built.groups.to_pylist():
        meta = json.loads(group["meta"])
        assert meta["prompt_version"]
        if group["kind"] == "thought":
            assert meta["outcome"] != [1, 1] and len(set(meta["samples"])) == 2
        else:
            assert meta["documents"] in ("chosen", "rejected")
