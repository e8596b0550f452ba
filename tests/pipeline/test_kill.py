"""kill -9 in the middle of a long stage: run again, it goes on, and the bytes are the same.

A trial counts only if the killed process had kept some of its records and not all; what it had
kept is logged. The second run must compute the rest and nothing else, end with the output of a
run that was never disturbed (in a store of its own), and leave no temporary file.
"""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encoders import tiny_bert
from language_models import tiny_lm
from rooms import files, run_room, write_params
from strategies import write_corpus

from stages.records import RecordStore
from stages.tables import table, write_table

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger(__name__)
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def sentences(n: int, words: int) -> list[str]:
    """n different texts of about ``words`` words."""
    rng = np.random.default_rng(5)
    return [f"No {i} is {' of '.join(rng.choice(WORDS, words // 2))}." for i in range(n)]


def long_ingest() -> None:
    rows = [{"id": str(i), "text": t} for i, t in enumerate(sentences(4000, 60))]
    Path("c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    chunk = {"mode": "cdc", "lo": 8, "hi": 32, "m": 4}
    write_params(ingest={"mine": {"source": "jsonl", "path": "c.jsonl", "chunk": chunk}})


def corpus(n: int, words: int) -> None:
    write_corpus(Path("data/ingest/c"), *sentences(n, words))


def long_parse() -> None:
    write_params(triples={"mine": {"extractor": "parse", "corpus": "c", "model": "none"}})
    corpus(900, 12)


def long_llm() -> None:
    tiny_lm(Path("data/finetune/lm"), context=1024)
    entry = {"extractor": "llm", "corpus": "c", "model": "lm", "max_malformed": 1.0}
    write_params(triples={"mine": {**entry, "max_tokens": 16, "passage_words": 4}})
    corpus(80, 12)  # three batches


def long_encode() -> None:
    tiny_bert(Path("data/finetune/tiny"))
    entry = {"kind": "flat", "corpus": "c", "model": "tiny", "centroids": "none"}
    write_params(index={"mine": entry})
    corpus(1200, 60)


def questions(*, more: dict[str, dict] | None = None, **rooms: dict) -> None:
    """A corpus with questions, its index and a model, for rooms that ask them."""
    tiny_lm(Path("data/finetune/lm"), context=1024)
    corpus(60, 12)
    rows = [
        {"qid": f"q{i}", "text": f"What is No {i}?", "split": "train", "answers": [f"No {i}"],
         "options": [], "meta": "{}"}
        for i in range(48)
    ]  # fmt: skip
    write_table(table("queries", rows), Path("data/ingest/c"), "queries")
    words = {"kind": "bm25", "corpus": "c", "model": "none", "centroids": "none"}
    write_params(index={"words": words, **(more or {})}, **rooms)
    run_room("index", "words")


SLOTS = {"corpus": "c", "index": "words", "encoder": "none", "model": "lm"}


def long_serve() -> None:
    entry = {**SLOTS, "strategy": "rag", "triples": "none", "split": "all"}
    questions(serve={"mine": {**entry, "max_tokens": 24, "passage_tokens": 40}})


def long_walk() -> None:
    words = {"kind": "suffixes", "corpus": "c", "model": "lm", "centroids": "none"}
    walk = {"simulations": 6, "granularity": 2, "depth": 3, "verify_tokens": 8, "trees": 4}
    entry = {**SLOTS, "index": "tokens", "strategy": "freeson", "triples": "none", "split": "all"}
    entry |= {"max_search": 1, "max_tokens": 4, "passage_tokens": 40, "questions": 12, "walk": walk}
    questions(serve={"mine": entry}, more={"tokens": words})
    run_room("index", "tokens")


def long_pairs(**rooms: dict) -> None:
    entry = {**SLOTS, "recipe": "answers", "questions": 16, "samples": 2, "passage_tokens": 40}
    questions(pairs={"mine": {**entry, "seed": 1}}, **rooms)


def long_finetune() -> None:
    slots = {"corpus": "none", "pairs": "mine", "index": "none", "encoder": "none", "model": "lm"}
    entry = {**slots, "recipe": "preference", "loss": "dpo", "lr": 1e-3, "steps": 40, "seed": 1}
    long_pairs(finetune={"mine": entry})
    run_room("pairs", "mine")


def long_dense() -> None:
    tiny_bert(Path("data/finetune/tiny"))
    corpus(40, 12)
    rows = [
        {"qid": f"q{i}", "text": f"What is No {i}?", "split": "train", "answers": [],
         "options": [], "meta": "{}"}
        for i in range(40)
    ]  # fmt: skip
    write_table(table("queries", rows), Path("data/ingest/c"), "queries")
    judged = [{"qid": f"q{i}", "docid": f"d{i}", "rel": 1} for i in range(40)]
    write_table(table("qrels", judged), Path("data/ingest/c"), "qrels")
    words = {"kind": "bm25", "corpus": "c", "model": "none", "centroids": "none"}
    slots = {**SLOTS, "pairs": "none", "model": "tiny"}
    entry = {**slots, "recipe": "dense", "steps": 150, "batch": 4, "skip": 0, "seed": 1}
    write_params(index={"words": words}, finetune={"mine": entry})
    run_room("index", "words")


def count(store: str) -> int:
    """How many records a store has, seen from outside while another process writes."""
    path = Path(store) / "records.sqlite"
    if not path.exists():
        return 0
    db = sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True, timeout=5)
    try:
        return db.execute("SELECT COUNT(*) FROM records").fetchone()[0]
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        db.close()


def checkpoints(store: str) -> int:
    """How many checkpoints of a training lie there: one while it runs."""
    return len(list(Path(".quarry/checkpoints").glob("*.safetensors")))


def kill_midway(room: str, progress: Callable[[str], int], more_than: int = 0) -> str:
    """Starts the stage and kills it once it shows progress; the store that it wrote to."""
    for trial in range(5):
        store = f"killed-{trial}"
        env = {**os.environ, "QUARRY_RECORDS": store}
        command = [sys.executable, "-m", f"stages.{room}", "mine"]
        with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and progress(store) <= more_than:
                time.sleep(0.005)
            process.kill()
        log.warning("%s: %d records, status %d", room, progress(store), process.returncode)
        if process.returncode == -9:
            return store
    raise AssertionError(f"{room}: never caught in the middle; give it more to do")


@pytest.fixture
def kept_now(monkeypatch) -> list[int]:
    """How many records this process adds to stores, batch by batch."""
    sizes: list[int] = []
    put_many = RecordStore.put_many
    monkeypatch.setattr(
        RecordStore, "put_many", lambda self, new: [sizes.append(len(new)), put_many(self, new)]
    )
    return sizes


@pytest.mark.parametrize(
    ("room", "prepare", "searches"),
    [
        pytest.param("ingest", long_ingest, 0, id="ingest"),
        pytest.param("triples", long_parse, 0, id="triples by parse"),
        pytest.param("triples", long_llm, 0, id="triples by llm"),
        pytest.param("index", long_encode, 0, id="index"),
        pytest.param("serve", long_serve, 96, id="serve"),
        pytest.param("serve", long_walk, 1, id="serve by walks"),
        pytest.param("pairs", long_pairs, 16, id="pairs"),
    ],
)
def test_a_killed_stage_goes_on_where_it_was(
    room, prepare, searches, monkeypatch, kept_now
) -> None:
    """Searches are kept first and at once: the kill comes later, among the generations. Walks are
    kept one by one: the kill comes among them."""
    prepare()
    before = files(Path("data"))
    store = kill_midway(room, count, more_than=searches)
    assert [f for f in files(Path("data")) if ".tmp/" not in f] == before
    kept = count(store)

    kept_now.clear()
    monkeypatch.setenv("QUARRY_RECORDS", store)
    resumed = run_room(room, "mine")
    computed = sum(kept_now)
    monkeypatch.setenv("QUARRY_RECORDS", "undisturbed")
    assert run_room(room, "mine") == resumed
    total = count("undisturbed")
    assert searches < kept < total  # else the trial does not count
    assert computed == total - kept
    assert [path for path in Path().rglob("*") if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    "prepare",
    [pytest.param(long_finetune, id="preference"), pytest.param(long_dense, id="dense")],
)
def test_a_killed_training_goes_on_from_its_checkpoint(prepare, monkeypatch) -> None:
    prepare()
    store = kill_midway("finetune", checkpoints)
    assert checkpoints(store) == 1
    assert not Path("data/finetune/mine").exists()

    trained = []
    for where in (store, "undisturbed"):
        monkeypatch.setenv("QUARRY_RECORDS", where)
        made = run_room("finetune", "mine")
        facts = json.loads(Path(".quarry/timings/finetune/mine.json").read_text())
        trained.append((made, facts["trained_steps"]))
        assert checkpoints(where) == 0
    (resumed, rest), (undisturbed, all_) = trained
    assert resumed == undisturbed
    assert 0 < rest < all_
    assert [path for path in Path().rglob("*") if path.name.endswith(".tmp")] == []


# Kills itself once the first table is written; "in place" is what shell.replaced must not be.
DIES_WRITING = """
import contextlib, os, signal, sys
from stages import shell, tables
from stages.ingest.__main__ import make

@contextlib.contextmanager
def in_place(out):
    out.mkdir(parents=True, exist_ok=True)
    yield out

def write_and_die(*args, **how):
    write_table(*args, **how)
    os.kill(os.getpid(), signal.SIGKILL)

write_table, tables.write_table = tables.write_table, write_and_die
if sys.argv.pop() == "in place":
    shell.replaced = in_place
shell.run("ingest", "", make)
"""


@pytest.mark.parametrize(("how", "left"), [("renamed", []), ("in place", ["documents.parquet"])])
def test_only_the_atomic_rename_keeps_half_an_output_away(how: str, left: list[str]) -> None:
    """Without it the check above would fail: half an output lies where a whole one should."""
    long_ingest()
    done = subprocess.run([sys.executable, "-c", DIES_WRITING, "mine", how])
    assert done.returncode == -9
    assert files(Path("data/ingest/mine")) == left
