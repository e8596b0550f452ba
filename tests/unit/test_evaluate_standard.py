"""The suite: which questions count, what is absent, what is compared."""

import json

import pyarrow as pa
import pytest

from stages import tables
from stages.errors import QuarryError
from stages.evaluate.standard import Collection, Params, System, evaluate
from stages.params import load
from stages.runs import run_table
from stages.types import Hit

ANSWER = {
    "answer": "", "memory": "", "docids": [], "rounds": 1, "llm_calls": 0, "searches": 1,
    "tokens_in": 0, "tokens_out": 0, "stop_reason": "fixed", "error": "",
}  # fmt: skip


def run(**docs: list[str]) -> pa.Table:
    hits = [[Hit(d, -float(i)) for i, d in enumerate(ds)] for ds in docs.values()]
    return run_table(list(docs), hits)


def answers(**rows: dict) -> pa.Table:
    return tables.table("answers", [{"qid": qid} | ANSWER | row for qid, row in rows.items()])


def collection(
    *,
    queries: dict[str, dict],
    qrels: dict[str, dict[str, int]],
    dup_of: dict[str, str] | None = None,
    dropped: tuple[str, ...] = (),
    docs: str = "abcdef",
) -> Collection:
    document = {"title": "", "content_hash": "", "locator": "", "meta": "{}"}
    passage = {"seq": 0, "title": "", "start": 0, "end": 0, "text_hash": ""}
    query = {"text": "?", "split": "test", "answers": [], "options": [], "meta": "{}"}
    judged = [(q, d, r) for q, ds in qrels.items() for d, r in ds.items()]
    return Collection(
        tables.table(
            "documents",
            [
                document | {"docid": d, "text": f"text {d}", "dup_of": (dup_of or {}).get(d, "")}
                for d in docs
            ],
        ),
        tables.table(
            "passages",
            [
                passage | {"docid": f"{d}#0", "parent": d, "text": f"text {d}"}
                for d in docs
                if d not in dropped
            ],
        ),
        tables.table("queries", [{"qid": q} | query | values for q, values in queries.items()]),
        tables.table("qrels", [{"qid": q, "docid": d, "rel": r} for q, d, r in judged]),
    )


def measured(of: Collection, *systems: System, split="test", baseline="none", measures=("R@1",)):
    return evaluate(
        of, systems, split=split, baseline=baseline, measures=list(measures), resamples=200
    )


def figure(done, system, measure):
    rows = [f for f in done.comparisons["figures"] if f["system"] == system]
    return next(f for f in rows if f["measure"] == measure)


TWO = {"q1": {}, "q2": {}}


def test_a_judged_question_without_hits_counts_and_an_unjudged_one_does_not():
    of = collection(queries=TWO | {"q3": {}}, qrels={"q1": {"a": 1}, "q2": {"a": 1}})
    done = measured(of, System("s", run(q1=["a"], q3=["a"]), None))
    assert done.metrics == {"s": {"R@1": 1 / 2, "n": 3}}
    assert figure(done, "s", "R@1")["n"] == 2
    assert done.per_query.to_pylist() == [
        {"system": "s", "measure": "R@1", "qid": "q1", "value": 1.0},
        {"system": "s", "measure": "R@1", "qid": "q2", "value": 0.0},
    ]


def test_only_questions_of_the_split_count():
    of = collection(
        queries={"q1": {}, "q2": {"split": "dev"}}, qrels={"q1": {"a": 1}, "q2": {"a": 1}}
    )
    s = System("s", run(q1=["a"]), None)
    assert measured(of, s).metrics["s"] == {"R@1": 1.0, "n": 1}
    assert measured(of, s, split="all").metrics["s"] == {"R@1": 1 / 2, "n": 2}
    with pytest.raises(QuarryError, match=r"split 'tset': .*: dev 1, test 1; together: all 2"):
        measured(of, s, split="tset")


def test_a_system_that_was_asked_half_is_measured_on_that_half():
    of = collection(queries=TWO, qrels={"q1": {"a": 1}, "q2": {"a": 1}})
    half = System("half", run(q1=["a"]), answers(q1={}))
    assert measured(of, half).metrics["half"]["R@1"] == 1.0
    assert measured(of, half).metrics["half"]["n"] == 1


def test_systems_are_compared_on_common_questions_only():
    of = collection(queries=TWO, qrels={"q1": {"a": 1}, "q2": {"a": 1}})
    whole = System("whole", run(q1=["b"], q2=["a"]), None)
    half = System("half", run(q1=["a"]), answers(q1={}))
    (row,) = measured(of, half, whole, baseline="whole").comparisons["comparisons"]
    assert (row["system"], row["baseline"], row["n"], row["difference"]) == (
        "half",
        "whole",
        1,
        1.0,
    )


def test_a_judged_duplicate_that_was_dropped_is_found_as_its_representative():
    qrels, queries = {"q1": {"b": 2, "a": 1}}, {"q1": {}}
    found = System("s", run(q1=["a"]), None)
    dropped = collection(queries=queries, qrels=qrels, dup_of={"b": "a"}, dropped=("b",))
    assert measured(dropped, found).metrics["s"]["R@1"] == 1.0
    marked = collection(queries=queries, qrels=qrels, dup_of={"b": "a"})
    assert measured(marked, found).metrics["s"]["R@1"] == 1 / 2  # b is there to be found


def test_a_query_that_is_a_document_does_not_find_itself():
    qrels = {"a": {"b": 1}}
    s = System("s", run(a=["a", "b"]), None)
    same = collection(queries={"a": {"text": "Text  A"}}, qrels=qrels)
    assert measured(same, s).metrics["s"]["R@1"] == 1.0
    stranger = collection(queries={"a": {"text": "another"}}, qrels=qrels)
    assert measured(stranger, s).metrics["s"]["R@1"] == 0.0


def test_what_cannot_be_measured_is_absent():
    of = collection(queries={"q1": {"answers": ["x"]}}, qrels={})
    done = measured(
        of,
        System("ranks", run(q1=["a"]), None),
        System("closed", run(), answers(q1={"answer": "x", "llm_calls": 1, "tokens_in": 7})),
    )
    assert done.metrics == {
        "ranks": {"n": 1},
        "closed": {"EM": 1.0, "F1": 1.0, "n": 1, "tokens": 7.0, "llm_calls": 1.0, "failed": 0},
    }
    assert done.recall == []


def test_a_closed_book_system_has_no_ranking_even_where_there_are_judgements():
    of = collection(queries={"q1": {"answers": ["x"]}}, qrels={"q1": {"a": 1}})
    closed = System("closed", run(), answers(q1={"answer": "x", "llm_calls": 1}))
    assert set(measured(of, closed).metrics["closed"]) & {"R@1", "SupportR"} == set()


def test_cost_is_per_question_and_stands_beside_the_quality_of_the_answers():
    of = collection(
        queries={"q1": {"answers": ["x"]}, "q2": {"answers": ["y"]}}, qrels={"q1": {"a": 1}}
    )
    rag = answers(
        q1={"answer": "x", "llm_calls": 1, "tokens_in": 10, "tokens_out": 2, "docids": ["a#0"]},
        q2={"answer": "", "llm_calls": 2, "tokens_in": 30, "tokens_out": 0, "error": "no"},
    )
    done = measured(of, System("rag", run(q1=["a"]), rag), System("ranks", run(q1=["a"]), None))
    assert done.metrics["rag"] == {
        "R@1": 1.0, "EM": 1 / 2, "F1": 1 / 2, "SupportR": 1.0,
        "n": 2, "tokens": (10 + 2 + 30 + 0) / 2, "llm_calls": (1 + 2) / 2, "failed": 1,
    }  # fmt: skip
    assert done.cost == [{"system": "rag", "tokens": 21.0, "quality": 0.5, "measure": "F1"}]


def test_a_system_with_a_log_tells_its_rounds_and_its_passages():
    of = collection(queries={"q1": {"answers": ["x"]}, "q2": {}}, qrels={"q1": {"b": 1}})
    rows = [("q1", 0, ["a#0", "b#0"]), ("q1", 2, ["a#0", "c#0"]), ("q2", 0, ["a#0"])]
    effects = tables.table("effects", [
        {"qid": qid, "effect_no": turn, "turn": turn, "kind": "Search", "key": "k",
         "request": json.dumps({"unit": "passage"}), "tokens_in": 0, "tokens_out": 0,
         "result": json.dumps([[docid, 1.0] for docid in docids])}
        for qid, turn, docids in rows
    ])  # fmt: skip
    told = answers(q1={"rounds": 2, "answer": "x"}, q2={"rounds": 1})
    loop = System("loop", run(q1=["a"]), told, effects)
    costs = measured(of, loop).metrics["loop"]
    assert (costs["rounds"], costs["docs"]) == ((2 + 1) / 2, (3 + 1) / 2)
    assert measured(of, loop).rounds == [
        {"system": "loop", "round": n, "recall": 1.0} for n in (1, 2)
    ]
    capped = measured(of, loop._replace(max_docs=1))
    assert capped.metrics["loop"]["docs"] == 1.0 and capped.rounds[-1]["recall"] == 0.0
    unlogged = measured(of, loop._replace(effects=None)).metrics["loop"]
    assert not unlogged.keys() & {"rounds", "docs", "walked"}


def test_where_nobody_answers_cost_stands_beside_the_ranking():
    of = collection(queries=TWO, qrels={"q1": {"a": 1}})
    done = measured(of, System("s", run(q1=["a"]), None))
    assert done.cost == [{"system": "s", "tokens": 0.0, "quality": 1.0, "measure": "R@1"}]


def test_recall_against_k_by_hand():
    of = collection(queries={"q1": {}}, qrels={"q1": {"a": 1, "c": 1}})
    done = measured(of, System("s", run(q1=["a", "b", "c"]), None))
    assert [(r["k"], r["recall"]) for r in done.recall] == [
        (1, 1 / 2), (2, 1 / 2), (3, 1.0), (5, 1.0), (10, 1.0), (20, 1.0), (50, 1.0), (100, 1.0),
    ]  # fmt: skip


def test_p_values_are_adjusted_over_the_systems_of_a_measure():
    qids = [f"q{i}" for i in range(12)]
    of = collection(queries={q: {} for q in qids}, qrels={q: {"a": 1} for q in qids})
    good, bad = run(**{q: ["a"] for q in qids}), run(**{q: ["b"] for q in qids})
    systems = [System("base", bad, None), System("one", good, None), System("two", good, None)]
    rows = measured(of, *systems, baseline="base").comparisons["comparisons"]
    smallest = 1 / (200 + 1)
    assert [(r["system"], r["p_permutation"]) for r in rows] == [
        ("one", round(smallest, 6)),
        ("two", round(smallest, 6)),
    ]
    assert {r["p_permutation_holm"] for r in rows} == {round(2 * smallest, 6)}


def test_without_systems_or_questions_everything_is_empty():
    of = collection(queries={}, qrels={})
    done = measured(of)
    assert (done.metrics, done.recall, done.cost) == ({}, [], [])
    assert done.per_query.equals(tables.empty_table("per_query"))
    assert measured(of, System("s", run(), None)).metrics == {"s": {"n": 0}}


def test_everything_can_be_written_as_json():
    of = collection(queries={"q1": {"answers": ["x"]}}, qrels={"q1": {"a": 1}})
    done = measured(of, System("s", run(q1=["a"]), None), baseline="s")
    written = [done.metrics, done.comparisons, done.recall, done.cost]
    read = json.loads(json.dumps(written, allow_nan=False))
    assert read[0]["s"]["n"] == 1 and all(read[1:]), "none of the parts is empty"


def test_a_misspelt_measure_names_the_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        "evaluate:\n  e: {suite: standard, corpus: c, fused: none, split: test, "
        "baseline: none, runs: [s], measures: [NDCG@10]}\n"
    )
    with pytest.raises(QuarryError, match=r"evaluate\.e\.measures: .*no measure 'NDCG@10'"):
        load(Params, "evaluate", "e", path=path)
