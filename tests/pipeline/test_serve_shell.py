"""``python -m stages.serve`` on small corpora: what lies there afterwards, and that it stays."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from encoders import tiny_bert
from language_models import reference, tiny_lm
from rooms import files, run_room, write_params
from strategies import passages_table

from stages.lm import LocalGenerator
from stages.tables import read_table, table, write_table

SEARCH = dict(strategy="search", corpus="c", index="words", encoder="none", triples="none",
              model="none", split="all")  # fmt: skip
RAG = SEARCH | dict(strategy="rag", model="lm", passage_tokens=20, max_tokens=8, questions=3)
TEXTS = ["Lyon is in France.", "Turin is in Italy.", "Porto is in Portugal.", "Graz is in Austria."]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_RECORDS", "records")


def prepare(texts=TEXTS, questions=("Where is Lyon?", "Where is Graz?", "Porto", "zzz"), **others):
    folder = Path("data/ingest/c")
    folder.mkdir(parents=True)
    rows = [
        dict(qid=f"q{i}", text=q, split="test", answers=["x"], options=[], meta="{}") | others
        for i, q in enumerate(questions)
    ]
    write_table(table("queries", rows), folder, "queries")
    write_table(passages_table(*texts), folder, "passages")
    write_params(
        index={"words": dict(kind="bm25", corpus="c", model="none", centroids="none")},
        serve={"find": SEARCH, "read": RAG, "closed": RAG | {"passages": 0}, "none": RAG | {
            "model": "none"}},
    )  # fmt: skip
    run_room("index", "words")
    tiny_lm(Path("data/finetune/lm"), context=2048)


def written(entry):
    folder = Path("data/runs/c") / entry
    tables = {kind: read_table(folder, kind) for kind in ("runs", "answers", "effects")}
    return tables, json.loads((folder / "stats.json").read_text())


def test_search_writes_a_run_and_who_was_asked():
    prepare()
    run_room("serve", "find")
    tables, stats = written("find")
    found = [(r["qid"], r["rank"]) for r in tables["runs"].to_pylist()]
    assert ("q0", 1) in found and "q3" not in {q for q, _ in found}, "zzz has no hits"
    assert set(tables["answers"]["answer"].to_pylist()) == {""}, "it ranks, it does not answer"
    assert tables["answers"].num_rows == 4 and tables["effects"].num_rows == 0
    assert (stats["questions"], stats["without_hits"]) == (4, 1)
    assert files(Path("data/runs/c/find")) == [
        "answers.parquet", "effects.parquet", "runs.parquet", "stats.json",
    ]  # fmt: skip


def test_rag_writes_answers_with_the_passages_shown_and_a_trace():
    prepare()
    run_room("serve", "read")
    tables, stats = written("read")
    answers = tables["answers"].to_pylist()
    assert len(answers) == 3 and stats["stop_reasons"] == {"fixed": 3}
    for a in answers:
        own = [e for e in tables["effects"].to_pylist() if e["qid"] == a["qid"]]
        assert [e["kind"] for e in own] == ["Search", "Search", "LLM"]
        hits = json.loads(own[0]["result"])
        assert a["docids"] == [docid for docid, _ in hits]
        assert (a["llm_calls"], a["searches"], a["tokens_in"]) == (1, 2, own[2]["tokens_in"])
        assert a["answer"] == json.loads(own[2]["result"])["text"].strip()


def test_a_second_run_is_byte_equal_and_reads_no_prompt(monkeypatch):
    prepare()
    first = run_room("serve", "read")

    def refuse(self, inbox):
        raise AssertionError("everything is in the record store")

    with monkeypatch.context() as patch:
        patch.setattr(LocalGenerator, "stream", refuse)
        assert run_room("serve", "read") == first
        facts = json.loads(Path(".quarry/timings/serve/read.json").read_text())
        assert facts["effects_reused"] == 9
    monkeypatch.setenv("QUARRY_RECORDS", "fresh")
    assert run_room("serve", "read") == first, "nor does a result depend on the store"


def likeliest(prompt, options):
    """By transformers itself: the option whose tokens have the largest log-probability."""
    model, tokenizer = reference(Path("data/finetune/lm"))
    before = len(tokenizer(prompt).input_ids)
    totals = []
    for option in options:
        ids = torch.tensor([tokenizer(prompt + option).input_ids])
        logps = model(ids).logits[0, :-1].log_softmax(-1)
        totals.append(logps.gather(1, ids[0, 1:, None])[before - 1 :].sum().item())
    return options[totals.index(max(totals))].strip()


@pytest.mark.parametrize("entry", ["closed", "read"])
def test_options_are_chosen_by_their_log_probability_and_measured(entry):
    prepare(questions=["Is Lyon in Italy?", "Is Graz in Austria?", "Where is Porto?"])
    folder = Path("data/ingest/c")
    rows = read_table(folder, "queries").to_pylist()
    for row, gold in zip(rows, ["No", "Yes", "Portugal"], strict=True):
        row |= {"answers": [gold], "options": [] if gold == "Portugal" else ["yes", "no"]}
    write_table(table("queries", rows), folder, "queries")
    for kind in ("documents", "qrels"):
        write_table(table(kind, []), folder, kind)

    run_room("serve", entry)
    tables, _ = written(entry)
    answers = {a["qid"]: a for a in tables["answers"].to_pylist()}
    calls = [e for e in tables["effects"].to_pylist() if e["kind"] != "Search"]
    assert [e["kind"] for e in calls] == ["Choice", "Choice", "LLM"]
    for call in calls[:2]:
        asked = json.loads(call["request"])
        assert asked["options"] == [" yes", " no"]
        assert ("Passage:" in asked["prompt"]) == (entry == "read")
        chosen = likeliest(asked["prompt"], asked["options"])
        assert answers[call["qid"]]["answer"] == chosen
        assert (answers[call["qid"]]["llm_calls"], call["tokens_out"]) == (1, 0)

    write_params(
        serve={entry: RAG}, fuse={},
        evaluate={"e": dict(suite="standard", corpus="c", fused="none", split="all",
                            baseline="none", runs=[entry])},
    )  # fmt: skip
    run_room("evaluate", "e")
    values = read_table(Path("data/evaluate/e"), "per_query").to_pylist()
    for measure in ("EM", "F1"):
        got = {v["qid"]: v["value"] for v in values if v["measure"] == measure}
        assert got["q0"] == float(answers["q0"]["answer"] == "no")
        assert got["q1"] == float(answers["q1"]["answer"] == "yes")
        assert len(got) == 3


@pytest.mark.parametrize("texts", [[], ["Lyon is in France."]], ids=["no passage", "one passage"])
def test_tiny_corpora_and_no_questions_are_ordinary(texts):
    prepare(texts)
    for entry in ("find", "read"):
        run_room("serve", entry)
        tables, _ = written(entry)
        assert set(tables["runs"]["rank"].to_pylist()) <= {1}
        write_table(read_table(Path("data/ingest/c"), "queries").slice(0, 0),
                    Path("data/ingest/c"), "queries")  # fmt: skip
        run_room("serve", entry)
        assert written(entry)[1]["questions"] == 0


@pytest.mark.parametrize(
    ("entry", "break_it", "message"),
    [
        (
            "none",
            lambda: None,
            "serve.none.model: Value error, this strategy needs one: name an entry, got 'none'.",
        ),
        ("read", lambda: Path("data/finetune/lm/tokenizer.json").unlink(), "tokenizer"),
        (
            "find",
            lambda: Path("data/ingest/c/queries.parquet").unlink(),
            "table queries is missing",
        ),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_written(entry, break_it, message, capsys):
    prepare()
    break_it()
    with pytest.raises(SystemExit):
        run_room("serve", entry)
    assert message in capsys.readouterr().err
    assert not Path("data/runs/c").exists() or files(Path("data/runs/c")) == []


def prepare_clusters(ahead: dict, **values) -> dict:
    """Entries ``whole`` and ``ahead``: a loop over an index in memory, and over its file."""
    prepare(texts=[f"{text} No {i}." for i in range(12) for text in TEXTS])
    tiny_bert(Path("data/finetune/bert"))
    slots = dict(corpus="c", model="bert")
    loop = RAG | dict(
        strategy="iter_retgen", index="near", encoder="bert", questions=4, rounds=2, max_active=1
    )
    loop |= values
    write_params(
        index={
            "lists": slots | dict(kind="centroids", centroids="none", nlist=8),
            "near": slots | dict(kind="clustered", centroids="lists", nprobe=3, codes=["fp16"]),
        },
        serve={"whole": loop, "ahead": loop | {"ahead": ahead}},
    )
    run_room("index", "lists")
    run_room("index", "near")
    return loop


def facts_of(entry: str) -> dict:
    return json.loads(Path(f".quarry/timings/serve/{entry}.json").read_text())


def test_clusters_fetched_ahead_change_no_result(monkeypatch):
    """Of an index in memory, and of one that is read while the model writes."""
    prepare_clusters({"hot_mib": 1, "budget_mib": 1})
    run_room("serve", "whole")
    monkeypatch.setenv("QUARRY_RECORDS", "empty")
    before = set(threading.enumerate())
    run_room("serve", "ahead")
    left = set(threading.enumerate()) - before
    assert not left, "a thread that lives when the process ends may abort it"
    (whole, _), (ahead, _) = written("whole"), written("ahead")
    assert ahead["answers"] == whole["answers"] and whole["runs"].num_rows
    for column in ("qid", "docid", "rank"):
        assert ahead["runs"][column] == whole["runs"][column]
    np.testing.assert_allclose(ahead["runs"]["score"], whole["runs"]["score"], rtol=1e-6)
    facts = facts_of("ahead")
    assert facts["windows"] == 4  # a question's first round hints at its second
    assert facts["hits"] > 0 and facts["copied_bytes"] > 0


def test_the_log_of_a_run_has_its_searches_and_is_no_result(monkeypatch):
    prepare_clusters({"hot_mib": 1, "budget_mib": "auto", "strategy": "once", "codec": "fp16"})
    monkeypatch.setenv("QUARRY_RECORDS", "empty")
    first = run_room("serve", "ahead")
    path = Path("measured/serve/ahead/serve_log.parquet")
    rows = pq.read_table(path).to_pylist()
    tables, _ = written("ahead")
    asked = [
        (e["qid"], json.loads(e["request"])["query"], [hit[0] for hit in json.loads(e["result"])])
        for e in tables["effects"].to_pylist()
        if e["kind"] == "Search" and json.loads(e["request"])["unit"] == "passage"
    ]
    for qid, query, found in asked:
        own = [r for r in rows if r["qid"] == qid and r["topk_ids"][: len(found)] == found]
        assert own, (query, "is in the log, with what it found")
    assert {r["qid"] for r in rows} == {"q0", "q1", "q2", "q3"}
    assert {r["round"] for r in rows} == {0, 1}
    assert all(r["hits"] + r["misses"] == r["nprobe"] == 3 for r in rows)
    assert {(r["system"], r["budget_bytes"]) for r in rows} == {("once", 2**20)}
    seconds = [r for r in rows if r["round"] == 1]
    assert sum(r["bytes_copied"] for r in rows) == facts_of("ahead")["copied_bytes"] > 0
    assert any(r["window_s"] > 0 and r["hits"] for r in seconds)
    assert facts_of("ahead")["windows"] == 4, "`once`: of each question, not of the stage"

    assert run_room("serve", "ahead") == first
    assert pq.read_table(path).num_rows == 0, "everything was reused, nothing was searched"
    shutil.rmtree("measured")
    assert run_room("serve", "ahead") == first and path.exists()


def test_what_a_question_leaves_in_memory_is_evicted_to_the_cache_fraction(monkeypatch):
    prepare_clusters({"hot_mib": 1, "budget_mib": 1, "cache_fraction": 0.0})
    monkeypatch.setenv("QUARRY_RECORDS", "empty")
    run_room("serve", "ahead")
    facts = facts_of("ahead")
    assert facts["requests"] == 4 and facts["evicted"] > 0


def test_a_run_that_would_depend_on_the_moment_is_refused(capsys):
    prepare_clusters({"scope": "resident"})
    with pytest.raises(SystemExit):
        run_room("serve", "ahead")
    said = capsys.readouterr().err
    assert "serve.ahead.ahead.scope: resident" in said and "--scope resident" in said
    assert not Path("data/runs/c/ahead").exists()
