"""Rows for contrastive training: nothing relevant is ever a negative."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.finetune.negatives import (
    Row,
    document_texts,
    judged,
    make_rows,
    mine,
    split_of,
    take_batches,
)
from stages.tables import table
from stages.types import Hit

TEXTS = {"a": "oak", "b": "elm", "c": "cod", "d": "oak", "e": "ash"}  # d repeats a


class Ranked:
    """An index that ranks everything the same way for every query."""

    fingerprint = "fixed"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        order = ["a#0", "d#0", "b#0", "c#0", "e#0"]
        return [[Hit(d, -float(i)) for i, d in enumerate(order)][:k] for _ in queries]


def test_a_grade_of_zero_is_not_relevant_and_only_judged_queries_of_the_split_are_asked() -> None:
    rels = [("q", "a", 2), ("q", "b", 0), ("r", "c", 1)]
    qrels = table("qrels", [dict(zip(("qid", "docid", "rel"), r, strict=True)) for r in rels])
    relevant = judged(qrels)
    assert relevant == {"q": {"a": 2}, "r": {"c": 1}}
    rows = [
        {"qid": q, "text": q * 2, "split": s, "answers": [], "options": [], "meta": "{}"}
        for q, s in (("q", "train"), ("r", "dev"), ("s", "train"))
    ]
    assert split_of(table("queries", rows), "train", relevant) == {"q": "qq"}


def test_a_document_is_trained_as_its_first_passage_is_indexed() -> None:
    rows = [
        {"docid": f"d#{seq}", "parent": "d", "seq": seq, "title": title, "text": text,
         "start": 0, "end": 0, "text_hash": ""}
        for seq, title, text in ((0, "Oak", "tree"), (1, "Oak", "leaf"))
    ]  # fmt: skip
    rows.append(rows[0] | {"docid": "x#0", "title": ""})
    assert document_texts(table("passages", rows)) == {"d": "Oak tree", "x": "tree"}


def test_mining_skips_the_best_and_what_is_relevant_or_has_a_relevant_text() -> None:
    relevant = {"q": {"a": 1}}
    assert mine({"q": "?"}, relevant, TEXTS, Ranked(), skip=0, depth=5) == {"q": ["b", "c", "e"]}
    assert mine({"q": "?"}, relevant, TEXTS, Ranked(), skip=3, depth=5) == {"q": ["c", "e"]}
    assert mine({"q": "?"}, relevant, TEXTS, Ranked(), skip=0, depth=3) == {"q": ["b"]}


def test_a_row_per_relevant_document_that_is_there_filled_up_from_the_corpus() -> None:
    relevant = {"q": {"a": 1, "b": 1, "gone": 1}}
    rows = make_rows(relevant, {"q": ["c"]}, TEXTS, n=2, seed=1)
    assert rows == [Row("q", "a", ("c", "e")), Row("q", "b", ("c", "e"))]  # d reads like a
    assert make_rows(relevant, {"q": ["c"]}, TEXTS, n=3, seed=1) == []
    assert make_rows(relevant, {"q": []}, TEXTS, n=0, seed=1)[0].negatives == ()


def test_another_seed_draws_other_negatives_and_the_same_seed_the_same() -> None:
    many = TEXTS | {f"x{i}": f"text {i}" for i in range(50)}
    mined = {"q": [f"x{i}" for i in range(50)]}
    drawn = [make_rows({"q": {"a": 1}}, mined, many, n=1, seed=s) for s in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len({rows[0].negatives for rows in drawn}) > 1


ids = st.sampled_from("abcdefgh")
judgements = st.dictionaries(
    st.sampled_from("qrstuv"), st.dictionaries(ids, st.just(1), min_size=1, max_size=4), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(relevant=judgements, size=st.integers(1, 5), steps=st.integers(1, 6))
def test_no_document_of_a_batch_is_relevant_to_another_rows_query(
    relevant: dict, size: int, steps: int
) -> None:
    texts = {d: f"text {d}" for d in "abcdefgh"}
    rows = make_rows(relevant, {q: sorted(texts) for q in relevant}, texts, n=0, seed=1)
    batches = list(take_batches(rows, relevant, size, steps, seed=1))
    assert len(batches) == steps
    assert batches == list(take_batches(rows, relevant, size, steps, seed=1))
    for batch in batches:
        assert 1 <= len(batch) <= size
        for one in batch:
            for other in batch:
                assert one is other or one.positive not in relevant[other.qid]


def test_every_row_of_an_epoch_comes_before_any_comes_a_third_time() -> None:
    relevant = {f"q{i}": {f"d{i}": 1} for i in range(6)}
    texts = {f"d{i}": str(i) for i in range(6)}
    rows = make_rows(relevant, {q: [] for q in relevant}, texts, n=0, seed=1)
    batches = list(take_batches(rows, relevant, 3, 4, seed=5))
    epochs = [batches[0] + batches[1], batches[2] + batches[3]]
    assert [sorted(e) for e in epochs] == [rows, rows]
    assert epochs[0] != epochs[1]


def test_rows_that_cannot_share_a_batch_make_smaller_ones() -> None:
    relevant = {"q": {"a": 1, "b": 1}}
    rows = make_rows(relevant, {"q": []}, TEXTS, n=0, seed=1)
    batches = list(take_batches(rows, relevant, 4, 3, seed=1))
    assert [len(b) for b in batches] == [1, 1, 1]
    assert {b[0].positive for b in batches[:2]} == {"a", "b"}
