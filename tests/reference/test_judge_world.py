"""RFM-RAG on the made world, with real BM25 and MiniLM: the loop, its pools, the trained judge."""

import json
import random
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from index_worlds import built, encoder_dir, opened
from ingest_corpora import ingest
from strategy_worlds import SLOTS

from stages import checkpoint
from stages.answers import exact_match
from stages.effects import Question
from stages.finetune import Inputs as Folders
from stages.finetune import judge
from stages.loop import Answered, run_loop
from stages.pairs import Inputs, sufficiency
from stages.preference import dense_ranks
from stages.records import RecordStore
from stages.serve import written
from stages.serve.asked import Library
from stages.serve.strategies import rfm_rag
from stages.tables import read_table, table, write_table
from stages.tools import Tools

QUESTIONS = {"train": 120, "dev": 100, "test": 100}


class World:
    """A small world, its index, and its facts."""

    def __init__(self, folder: Path) -> None:
        corpus = ingest(
            "world", Path("none"), folder / "records", seed=13, entities=300,
            questions=QUESTIONS, dedup={"mode": "off"},
        )  # fmt: skip
        self.folder, self.tables = folder, corpus.tables
        docids = set(self.tables["passages"]["parent"].to_pylist())
        self.triples = table("triples", [
            {"docid": f"{row['docid']}#0", "seq": i, "subj": s, "rel": r, "obj": o, "text_hash": ""}
            for row in self.tables["documents"].to_pylist() if row["docid"] in docids
            for i, (s, r, o) in enumerate(json.loads(row["meta"])["triples"])
        ])  # fmt: skip
        self.tools = Tools(retriever=opened(built(folder, "bm25", self.tables["passages"])))

    def serve(self, split: str, tools: Tools | None = None, **values) -> list[Answered]:
        """Questions of a split; answers are copied."""
        values = {"triples": "t", "model": "none", "reader": "copy", "relevance": 0.67} | values
        params = rfm_rag.Params(**SLOTS | {"strategy": "rfm_rag"} | values)
        library = Library(self.tables["passages"], None, triples=self.triples)
        asked = [q for q in self.tables["queries"].to_pylist() if split in (q["split"], "all")]
        strategy = partial(rfm_rag.strategy, params=params, library=library)
        questions = [Question(q["qid"], q["text"]) for q in asked]
        return run_loop(strategy, questions, tools or self.tools).answered

    def right(self, answered: list[Answered], kind: str) -> float:
        """The share of right answers to questions of a type."""
        asked = {q["qid"]: q for q in self.tables["queries"].to_pylist()}
        hits = [
            exact_match(a.outcome.answer, asked[a.qid]["answers"])
            for a in answered
            if json.loads(asked[a.qid]["meta"])["type"] == kind
        ]
        return sum(hits) / len(hits)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def rounds(answered: list[Answered]) -> float:
    return sum(len(json.loads(a.outcome.memory)["rounds"]) for a in answered) / len(answered)


def test_the_pool_and_its_gaps_find_the_chain_that_one_search_does_not(world) -> None:
    """The card's shape: full > without a pool = one-shot on 2-3 hops; one fact needs one round."""
    full, once, last = (
        world.serve("test", judge="coverage", **values)
        for values in ({}, {"rounds": 1}, {"memory": "last"})
    )
    assert world.right(full, "bridge") > 0.95 > 0.3 > world.right(once, "bridge")
    assert world.right(last, "bridge") == world.right(once, "bridge"), "no chain without a pool"
    assert world.right(once, "single") == world.right(full, "single") == 1
    assert 1 < rounds(full) < 2.5 and rounds(once) == 1


def test_no_passage_is_read_twice_in_the_world(world) -> None:
    for a in world.serve("dev", judge="always_continue"):
        trace = json.loads(a.outcome.memory)
        read = [d for r in trace["rounds"] for d in r["new"]]
        assert len(set(read)) == len(read)
        assert a.outcome.stop_reason in {"converged", "no_query"}


def pools(world: World, folder: Path, *, shuffled: bool) -> Path:
    """The entry of pairs of a run over all questions; labels of one question changed about."""
    run = folder / "run"
    run.mkdir(parents=True)
    answered = world.serve("all", judge="always_continue")
    write_table(written.write_answers(answered), run, "answers")
    params = sufficiency.Params(
        recipe="sufficiency", corpus="c", index="none", encoder="none", model="none", triples="t",
        run="c/r", seed=13,
    )  # fmt: skip
    inputs = Inputs(
        *(world.tables[k] for k in ("queries", "passages", "qrels")), world.triples, run
    )
    with RecordStore(folder / "records") as store:
        made = sufficiency.build(params, inputs, Tools(), store)
    candidates = shuffle(made.candidates) if shuffled else made.candidates
    write_table(made.groups, folder, "pref_groups")
    write_table(candidates, folder, "pref_candidates")
    return folder


def shuffle(candidates: pa.Table) -> pa.Table:
    """The labels of each question dealt out anew."""
    rng, groups = random.Random(5), {}
    for row in candidates.to_pylist():
        groups.setdefault(row["group_id"], []).append(row)
    for rows in groups.values():
        labels = [r["label"] for r in rows]
        rng.shuffle(labels)
        scores = [(1 + y) / 2 for y in labels]
        for row, y, s, rank in zip(rows, labels, scores, dense_ranks(scores), strict=True):
            row |= {"label": y, "score": s, "rank": rank}
    return table("pref_candidates", [r for rows in groups.values() for r in rows])


def train(folder: Path, made: Path) -> dict:
    """The calibration of a judge trained on these pools."""
    folder.mkdir()
    params = judge.Params(
        recipe="judge", corpus="none", pairs="p", index="none", encoder="none", model="m",
        epochs=3, batch=16, lr=5e-5, head_lr=5e-3, max_tokens=160, seed=13, threads=2,
    )  # fmt: skip
    judge.train(params, Folders(pairs=made, model=encoder_dir("dense")), folder)
    return json.loads((folder / "training.json").read_text())["made_by"]["calibration"]


@pytest.mark.slow
def test_the_judge_learns_sufficiency_and_not_length(world, tmp_path, monkeypatch) -> None:
    """Full support against as many sentences with one support replaced (check 8)."""
    from stages.judge import open_judge

    monkeypatch.setattr(checkpoint, "CHECKPOINTS", tmp_path / "c")
    found = train(tmp_path / "judge", pools(world, tmp_path / "pools", shuffled=False))
    after = found["after"]
    assert after["auc_same_length"] >= 0.85 and after["auc"] >= 0.85
    assert after["auc"] > found["before"]["auc"] and after["false_stop_rate"] < 0.15
    values = {"judge": "cross_encoder", "scorer": "judge"}
    tools = world.tools._replace(reranker=open_judge(tmp_path / "judge"))
    tools = rfm_rag.equip(tools, rfm_rag.Params(**SLOTS | {
        "strategy": "rfm_rag", "triples": "t", **values}), tmp_path / "judge")  # fmt: skip
    judged, always = (
        world.serve("test", tools, **values),
        world.serve("test", judge="always_continue"),
    )
    assert rounds(judged) < rounds(always)
    assert world.right(judged, "bridge") > world.right(always, "bridge") - 0.1
    assert read_table(tmp_path / "pools", "pref_groups").num_rows == 220


@pytest.mark.slow
def test_labels_by_chance_are_not_learnt(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINTS", tmp_path / "c")
    found = train(tmp_path / "judge", pools(world, tmp_path / "pools", shuffled=True))
    assert found["after"]["auc"] == pytest.approx(0.5, abs=0.05)
