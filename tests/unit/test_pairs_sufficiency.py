"""Pools for RFM-RAG's judge: replayed from a run, made from support, labelled, balanced."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from loop_fakes import FakeLLM
from strategy_worlds import SLOTS

from stages.effects import Question, dumps
from stages.errors import QuarryError
from stages.loop import run_loop
from stages.pairs import Inputs
from stages.pairs.evidence_pools import make_pools, read_run
from stages.pairs.sufficiency import Params, balance, build, label_of
from stages.preference import read_groups
from stages.prompts import rag_prompt
from stages.records import RecordStore
from stages.runs import parent
from stages.serve import written
from stages.serve.asked import Library
from stages.serve.strategies import rag, rfm_rag
from stages.tables import table, write_table
from stages.tools import Tools
from stages.types import Hit

N = 24  # people, each with a company and its town
VALUES = dict(
    recipe="sufficiency", corpus="c", index="none", encoder="none", model="none", triples="t",
    run="c/r", seed=3,
)  # fmt: skip


def fact(docid: str, subj: str, rel: str, obj: str) -> dict[str, str]:
    return {"docid": docid, "subj": subj, "rel": rel, "obj": obj}


CHAINS = [
    [fact(f"p{i}", f"Ann{i} Lee", "works for", f"Oak{i} Mills"),
     fact(f"c{i}", f"Oak{i} Mills", "based in", f"Old Town{i}")]
    for i in range(N)
]  # fmt: skip
DOCS = {f["docid"]: (f["subj"], f"{f['subj']} {f['rel']} {f['obj']}.") for c in CHAINS for f in c}


def passages() -> pa.Table:
    return table("passages", [
        dict(docid=f"{d}#0", parent=d, seq=0, title=title, text=f"{text} It rains a lot there.",
             start=0, end=9, text_hash=d)
        for d, (title, text) in DOCS.items()
    ])  # fmt: skip


def triples() -> pa.Table:
    return table("triples", [
        dict(docid=f"{f['docid']}#0", seq=0, subj=f["subj"], rel=f["rel"], obj=f["obj"],
             text_hash="")
        for c in CHAINS for f in c
    ])  # fmt: skip


def queries(**changes: Any) -> pa.Table:
    return table("queries", [
        dict(qid=f"q{i:02}", split=("dev", "train", "train")[i % 3], options=[],
             text=f"Where is the company that Ann{i} Lee works for based?",
             answers=[f"Old Town{i}"], meta=dumps({"type": "bridge", "chain": CHAINS[i]})) | changes
        for i in range(N)
    ])  # fmt: skip


def qrels() -> pa.Table:
    rows = [(f"q{i:02}", f["docid"]) for i, c in enumerate(CHAINS) for f in c]
    return table("qrels", [dict(qid=q, docid=d, rel=1) for q, d in rows])


class ByWords:
    """Passages by the share of a query's words that they have."""

    fingerprint = "words"

    def search(self, texts, k):
        ranked = []
        for text in texts:
            asked = set(text.rstrip("?").split())
            scored = [
                (len(asked & set(" ".join(doc).rstrip(".").split())) / len(asked), f"{name}#0")
                for name, doc in DOCS.items()
            ]
            ranked.append([Hit(d, s) for s, d in sorted(scored, reverse=True)[:k] if s])
        return ranked


class Heard:
    """A judge that says no and remembers what it was shown."""

    fingerprint = "heard"

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def score(self, pairs):
        self.pairs += pairs
        return np.zeros(len(pairs), dtype=np.float32)


def serve(folder: Path, asked: pa.Table, *, judge: Heard | None = None, **values) -> Path:
    """A run of rfm_rag as serving writes it."""
    how = {"judge": "cross_encoder", "scorer": "s"} if judge else {"judge": "always_continue"}
    values = {"triples": "t", "model": "none", "reader": "copy", "passages": 4} | how | values
    params = rfm_rag.Params(**SLOTS | {"strategy": "rfm_rag"} | values)
    loop = run_loop(
        partial(rfm_rag.strategy, params=params,
                library=Library(passages(), None, triples=triples())),
        [Question(q["qid"], q["text"], tuple(q["options"])) for q in asked.to_pylist()],
        Tools(None, ByWords(), reranker=judge),
    )  # fmt: skip
    folder.mkdir(parents=True)
    write_table(written.write_answers(loop.answered), folder, "answers")
    return folder


def inputs(folder: Path, asked: pa.Table | None = None, **values) -> Inputs:
    asked = queries() if asked is None else asked
    return Inputs(asked, passages(), qrels(), triples(), serve(folder / "run", asked, **values))


def made(folder: Path, given: Inputs, tools: Tools | None = None, **changes: Any):
    with RecordStore(folder / "records") as store:
        built = build(Params(**VALUES | changes), given, tools or Tools(), store)
    groups = read_groups(built.groups, built.candidates)  # what training accepts
    about = {g["group_id"]: json.loads(g["meta"])["pools"] for g in built.groups.to_pylist()}
    return built, groups, about


# -- the loop's own pools ---------------------------------------------------------------------


def test_the_pools_of_a_run_are_those_that_its_judge_saw(tmp_path) -> None:
    judge = Heard()
    given = inputs(tmp_path, judge=judge, pool_cap=3, patience=2)
    how = {"most_distractors": 5, "seed": 3}
    replayed = [
        (q.text, p.text)
        for q in read_run(given, dev_share=0.5)
        for p in make_pools(q, [], **how)
        if p.source == "self"
    ]
    assert sorted(replayed) == sorted(judge.pairs) and len(replayed) >= 2 * N
    assert any(gone is not None for q in read_run(given, dev_share=0.5) for _, gone in q.items)


# -- pools from support -----------------------------------------------------------------------


def test_every_manipulation_does_to_the_support_what_it_says(tmp_path) -> None:
    questions = read_run(inputs(tmp_path), dev_share=0.5)
    others = [e for q in questions for e, _ in q.items]
    for q in questions:
        assert [e.text for e in q.support] == [DOCS[f["docid"]][1] for f in CHAINS[int(q.qid[1:])]]
        pools: dict[str, list] = {}
        for pool in make_pools(q, others, most_distractors=5, seed=3):
            pools.setdefault(pool.source, []).append(pool)
        support = {e.text for e in q.support}

        def hops(source: str, pools=pools, support=support) -> list[int]:
            return [len(support & {e.text for e in p.items}) for p in pools.get(source, [])]

        assert hops("full+distractors") == [2] and hops("distractors") == [0]
        assert hops("left_out") == hops("left_out_last") == [1]
        (whole,) = pools["full+distractors"]
        (cut,) = pools.get("replaced", []) + pools.get("replaced_last", [])
        assert len(whole.items) == len(cut.items) > 2 and whole.found.kappa == 1
        assert len(support & {e.text for e in cut.items}) == 1
        (last,) = pools["left_out_last"]
        assert [e.docid for e in last.items] == [q.support[0].docid]
        every = [p.text for of_one in pools.values() for p in of_one]
        assert len(set(every)) == len(every)


def test_three_hops_have_a_prefix_and_a_single_fact_none(tmp_path) -> None:
    (q, *_) = read_run(inputs(tmp_path), dev_share=0.5)
    three = q._replace(support=[*q.support, q.support[0]._replace(text="a third", facts=())])
    sources = [p.source for p in make_pools(three, [], most_distractors=1, seed=3)]
    assert sources.count("prefix") == 1 and sources.count("left_out") == 2
    one = q._replace(support=q.support[:1])
    pools = {p.source: p for p in make_pools(one, [], most_distractors=1, seed=3)}
    assert "prefix" not in pools and pools["left_out_last"].items == []


def test_without_a_chain_support_is_what_the_judged_documents_say(tmp_path) -> None:
    bare = queries(meta="{}")
    for q in read_run(inputs(tmp_path, bare), dev_share=0.5):
        docids = {parent(e.docid) for e in q.support}
        assert docids == {f["docid"] for f in CHAINS[int(q.qid[1:])]}
        assert all("rains" not in e.text for e in q.support)


# -- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "o", "g", "label"),
    [
        ("self", True, True, 1),
        ("self", False, False, -1),
        ("self", True, False, 0),  # guessed, or known by heart
        ("self", False, True, 0),  # the reader's failure
        ("full", True, True, 1),
        ("full", False, True, 0),
        ("left_out", True, False, -1),
        ("replaced_last", True, False, -1),
        ("distractors", True, False, 0),
        ("prefix", False, False, -1),
    ],
)
def test_a_label_needs_reader_and_support_to_agree(source, o, g, label) -> None:
    assert label_of(source, o, g) == label


def test_every_question_has_as_many_of_one_label_as_of_the_other(tmp_path) -> None:
    built, groups, about = made(tmp_path, inputs(tmp_path))
    assert {g.split for g in groups} == {"train", "dev"} and len(groups) == N
    n_hard = n_insufficient = 0
    for g in groups:
        labels = [c.label for c in g.candidates if c.label]
        assert labels.count(1) == labels.count(-1) >= 1
        sources = {about[g.group_id][c.cand_id][0] for c in g.candidates if c.label}
        assert {"full+distractors", "replaced", "left_out"} <= sources
        for c in g.candidates:
            source, n_round, f1 = about[g.group_id][c.cand_id]
            kappa = float(c.text.split()[0].removeprefix("kappa="))
            assert c.label != 1 or (f1 == 1.0 and kappa == 1.0)
            assert c.text.splitlines()[0].endswith(f"round={n_round}")
            if c.label == 0:
                assert (g.split, source) == ("dev", "self"), "kept for the threshold alone"
    for counts in built.stats["kept"].values():
        n_hard += counts["without_last_hop"]
        n_insufficient += counts["insufficient"]
        assert counts["sufficient"] == counts["insufficient"]
    assert n_hard >= 0.2 * n_insufficient


def test_all_rounds_of_a_dev_question_are_there(tmp_path) -> None:
    given = inputs(tmp_path)
    _, groups, about = made(tmp_path, given, per_label=1)
    rounds = {q.qid: q.n_rounds for q in read_run(given, dev_share=0.5) if q.split == "dev"}
    for g in groups:
        own = [n for source, n, _ in about[g.group_id].values() if source == "self"]
        if g.split == "dev":
            qid = next(r["qid"] for r in queries().to_pylist() if r["text"] == g.prompt)
            assert sorted(own) == list(range(1, rounds[qid] + 1))


def test_a_reader_that_fails_leaves_no_sufficient_pool(tmp_path) -> None:
    wrong = queries(answers=["Nowhere"])
    built, groups, _ = made(tmp_path, inputs(tmp_path, wrong))
    assert groups == [] and built.stats["counts"]["dropped_no_sufficient"] == N
    assert built.stats["counts"]["mixed_support_not_read"] > 0


def test_what_a_test_compares_goes_first() -> None:
    class Made:
        def __init__(self, source: str) -> None:
            self.source, self.text = source, source

    judged = [(Made(s), label, 0.0) for s, label in (
        ("full", 1), ("self", 1), ("full+distractors", 1), ("prefix", -1), ("left_out_last", -1),
        ("replaced", -1), ("mixed", 0),
    )]  # fmt: skip
    chosen = balance(judged, Params(**VALUES | {"per_label": 2}))
    assert {judged[i][0].source for i in chosen} == {
        "full+distractors", "self", "replaced", "left_out_last"
    }  # fmt: skip
    assert balance(judged[:3], Params(**VALUES)) == set()


# -- splits, readers, errors ------------------------------------------------------------------


def test_a_run_of_train_questions_gives_a_share_to_dev_by_hash(tmp_path) -> None:
    train = queries(split="train")
    given = inputs(tmp_path, train)
    splits = {q.qid: q.split for q in read_run(given, dev_share=0.3)}
    assert 0 < sum(s == "dev" for s in splits.values()) < N
    more = {q.qid: q.split for q in read_run(given, dev_share=0.6)}
    assert all(more[qid] == "dev" for qid, s in splits.items() if s == "dev")
    few = read_run(given, dev_share=0.3, most={"train": 2})
    assert sum(q.split == "train" for q in few) == 2
    assert sum(q.split == "dev" for q in few) == sum(s == "dev" for s in splits.values())


def test_test_questions_are_never_used(tmp_path) -> None:
    mixed = pa.Table.from_pylist(
        [q | {"split": "test"} if i % 2 else q for i, q in enumerate(queries().to_pylist())],
        schema=queries().schema,
    )
    used = {q.qid for q in read_run(inputs(tmp_path, mixed), dev_share=0.5)}
    assert used == {f"q{i:02}" for i in range(0, N, 2)}


def test_a_model_reads_every_pool_in_the_prompt_that_serving_asks(tmp_path) -> None:
    llm = FakeLLM(lambda prompt: f" {prompt.rpartition('based in ')[2].split('.')[0]}\n")
    given = inputs(tmp_path)
    _, groups, _ = made(tmp_path, given, Tools(llm), model="m")
    assert len(groups) == N, "it finds the last town in what it is shown"
    asked = {r.prompt for b in llm.batches for r in b}
    q = read_run(given, dev_share=0.5)[0]
    shown = [rag.Passage(e.docid, DOCS[parent(e.docid)][0], e.text) for e in reversed(q.support)]
    assert rag_prompt(q.text, shown) in asked
    n = llm.n_calls
    made(tmp_path, given._replace(), Tools(llm), model="m")
    assert llm.n_calls == n, "from the record store"


def test_options_are_chosen_from(tmp_path) -> None:
    llm = FakeLLM()
    given = inputs(tmp_path, queries(options=["Old Town1", "elsewhere"]))
    made(tmp_path, given, Tools(llm), model="m")
    assert llm.choices and llm.n_calls == 0


def test_what_is_missing_is_named(tmp_path) -> None:
    given = inputs(tmp_path)
    with pytest.raises(QuarryError, match="needs a 'run' of rfm_rag and its 'triples'"):
        made(tmp_path, given._replace(run=None))
    with pytest.raises(QuarryError, match="no train question with supporting documents"):
        made(tmp_path, given._replace(qrels=qrels().slice(0, 0)))
    answers = table("answers", [dict(
        qid="q00", answer="", memory="a note", docids=[], rounds=1, llm_calls=0, searches=1,
        tokens_in=0, tokens_out=0, stop_reason="fixed", error="",
    )])  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    write_table(answers, other, "answers")
    with pytest.raises(QuarryError, match="is not a run of strategy rfm_rag"):
        made(tmp_path, given._replace(run=other))


def test_equal_inputs_make_equal_tables(tmp_path) -> None:
    given = inputs(tmp_path)
    one, two = made(tmp_path, given)[0], made(tmp_path, given)[0]
    assert one.groups.equals(two.groups) and one.candidates.equals(two.candidates)
