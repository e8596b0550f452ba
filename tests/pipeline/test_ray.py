"""``engine: ray`` on a local cluster of two: the bytes of ``local``, also when workers are killed.

Both engines fill record stores of their own from nothing. In the runs on Ray this process is
unable to parse, generate or encode, so that whatever comes out was computed by workers.
"""

import os
import random
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from encoders import tiny_bert
from language_models import tiny_lm
from rooms import run_room, write_params

from stages import encoder, engines
from stages.digest import digest
from stages.errors import QuarryError
from stages.ingest import corpus
from stages.records import RecordStore
from stages.tables import read_table
from stages.triples import llm, parse

ray = pytest.importorskip("ray", reason="the extra ray is not installed; make test-ray does it")

STORE_BYTES = 80 * 2**20  # Ray's least is 75 MiB
CHUNK = {"mode": "cdc", "lo": 4, "hi": 12, "m": 2}
ENTRIES = [
    ("ingest", "c"), ("triples", "parsed"), ("triples", "written"), ("index", "vectors"),
    ("index", "words"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on loopback for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers import this file
        engines.open_ray(cores=2, store_bytes=STORE_BYTES)
        yield
        ray.shutdown()


class Project:
    """A corpus of near-duplicates, and the rooms that compute per document or passage."""

    def __init__(self) -> None:
        tiny_bert(Path("data/finetune/tiny"))
        tiny_lm(Path("data/finetune/lm"))
        places = ["Paris", "Rome", "Bonn", "Tokyo", "Zürich"]
        with Path("c.jsonl").open("w", encoding="utf-8") as f:
            for i in range(60):
                a, b = places[i % 5], places[i % 3]
                text = f"{a} is a city. {a} has {i % 20} airports. It rained. {b} lies near {a}."
                f.write(f'{{"id": "d{i}", "title": "{a}", "text": "{text}"}}\n')

    def run(self, engine: str) -> tuple[list[str], dict[str, bytes]]:
        """Digests of all outputs, and all records, of a run that knew nothing."""
        index = {"corpus": "c", "centroids": "none", "max_tokens": 64, "engine": engine}
        read = {"corpus": "c", "engine": engine}
        write_params(
            ingest={"c": {"source": "jsonl", "path": "c.jsonl", "chunk": CHUNK, "engine": engine,
                          "dedup": {"mode": "drop"}}},
            triples={"parsed": {**read, "extractor": "parse", "model": "none"},
                     "written": {**read, "extractor": "llm", "model": "lm", "max_tokens": 8,
                                 "max_malformed": 1.0, "limit": 40, "threads": 2}},
            index={"vectors": {**index, "kind": "flat", "model": "tiny"},
                   "words": {"corpus": "c", "kind": "bm25", "model": "none", "centroids": "none",
                             "engine": engine}},
        )  # fmt: skip
        os.environ["QUARRY_RECORDS"] = engine
        return [run_room(*entry) for entry in ENTRIES], records(Path(engine))


def records(folder: Path) -> dict[str, bytes]:
    with sqlite3.connect(folder / "records.sqlite") as db:
        return dict(db.execute("SELECT key, value FROM records").fetchall())


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_RECORDS", "local")
    for room in (corpus, parse, llm, encoder):
        monkeypatch.setattr(room, "BATCH", 8)  # more batches than workers
    return Project()


def test_outputs_and_records_are_those_of_local(project, monkeypatch) -> None:
    outputs, kept = project.run("local")
    assert read_table(Path("data/triples/parsed"), "triples").num_rows > 60
    for where, name in (
        (corpus.chunk, "split_passages"), (corpus.dedup, "band_hashes"), (parse, "load_parser"),
        (llm, "open_generator"), (encoder._Model, "run"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, None)  # here; workers import their own
    again, computed = project.run("ray")
    assert again == outputs
    assert computed == kept and len(kept) > 4 * 8


class Witness:
    """A function that leaves a mark for every batch: which process read it, and when it ended."""

    def __init__(self, fn, folder: Path) -> None:
        self.fn, self.folder = fn, folder

    def __call__(self, batch: list[tuple[str, ...]]) -> list[bytes]:
        name = f"{os.getpid()}.{digest(*batch[0])[:8]}"
        (self.folder / f"{name}.begun").touch()
        values = self.fn(batch)
        (self.folder / f"{name}.ended").touch()
        return values

    def pids(self) -> set[int]:
        return {int(mark.name.split(".")[0]) for mark in self.folder.iterdir()}


@pytest.mark.parametrize("entry", [("ingest", "c"), ("triples", "parsed"), ("index", "vectors")])
@pytest.mark.parametrize("seed", range(3))
def test_a_worker_killed_at_a_random_point_is_replaced_and_nothing_else_changes(
    project, monkeypatch, capsys, entry, seed
) -> None:
    """SIGKILL to one of the workers, or all, when some of the batches are kept and not all are."""
    rng = random.Random(f"{seed} {entry}")
    write, marks = RecordStore.put_many, Path("marks").resolve()
    marks.mkdir()
    last, kept_batches = rng.randrange(1, 5), 0
    everybody, killed = rng.random() < 0.5, set()

    def write_and_kill(store: RecordStore, items: dict[str, bytes]) -> None:
        nonlocal kept_batches
        write(store, items)
        kept_batches += 1
        if kept_batches == last:
            pids = sorted(Witness(None, marks).pids())
            killed.update(pids if everybody else [rng.choice(pids)])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    for room in (corpus, parse, encoder):
        monkeypatch.setattr(room, "BATCH", 3)  # many are left when the signal comes
    outputs, kept = project.run("local")

    def watched(fn, batches, *, cores):
        return engines.apply_on_ray(Witness(fn, marks), batches, cores=cores)

    monkeypatch.setitem(engines.ENGINES, "ray", watched)
    os.environ["QUARRY_RECORDS"] = "ray"
    for before in ENTRIES[: ENTRIES.index(entry)]:
        run_room(*before)  # still local, in an empty store
    there = records(Path("ray")) if Path("ray").exists() else {}
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("engine: local", "engine: ray"))
    monkeypatch.setattr(RecordStore, "put_many", write_and_kill)
    assert run_room(*entry) == outputs[ENTRIES.index(entry)]
    made = records(Path("ray")).keys() - there.keys()
    with capsys.disabled():
        print(f"\n{entry}: SIGKILL to {len(killed)} after {last} of {kept_batches} batches")
    assert killed and last < kept_batches, "some were kept, others left to do"
    assert Witness(None, marks).pids() - killed, "others went on"
    assert made and all(records(Path("ray"))[key] == kept[key] for key in made)


def shout(batch: list[tuple[str, ...]]) -> list[bytes | None]:
    """Upper case; "nothing" gives nothing and "bad" is an error."""
    if ("bad",) in batch:
        raise QuarryError("a record is bad: leave it out")
    return [None if text == "nothing" else text.upper().encode() for (text,) in batch]


def on_ray(folder: Path, texts: list[str], fn=shout, *, batch: int = 2) -> list[bytes | None]:
    with RecordStore(folder, apply=engines.apply_on_ray) as store:
        keys = [digest("shout", t) for t in texts]
        return store.compute(keys, [(t,) for t in texts], fn, batch=batch, unit="text")


def test_values_stand_in_the_order_of_their_keys(tmp_path: Path) -> None:
    texts = [f"t{i * 7 % 23}" for i in range(60)]
    assert on_ray(tmp_path, texts) == [t.upper().encode() for t in texts]
    assert on_ray(tmp_path, texts, None) == [t.upper().encode() for t in texts], "all are kept"


def test_nothing_is_given_back_and_not_kept(tmp_path: Path) -> None:
    assert on_ray(tmp_path, ["a", "nothing", "b"]) == [b"A", None, b"B"]
    assert records(tmp_path).keys() == {digest("shout", t) for t in "ab"}


def test_an_error_for_the_user_comes_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(QuarryError) as e:
        on_ray(tmp_path, ["a", "b", "c", "bad"])
    assert str(e.value) == "a record is bad: leave it out"
    assert digest("shout", "c") not in records(tmp_path), "none of its batch is kept"


def test_more_than_the_object_store_holds_goes_through(tmp_path: Path) -> None:
    """A hundred records of 1 MiB each way through 80 MiB: what is over waits on disk."""

    def long(batch: list[tuple[str, ...]]) -> list[bytes]:
        return [text[:1].encode() * 2**20 for (text,) in batch]

    texts = [chr(48 + i % 64) + str(i) + "x" * 2**20 for i in range(100)]
    assert on_ray(tmp_path, texts, long) == [t[:1].encode() * 2**20 for t in texts]


def test_a_function_that_wants_more_cores_than_there_are_gets_them_all(tmp_path: Path) -> None:
    with RecordStore(tmp_path, apply=engines.apply_on_ray) as store:
        assert store.compute(["k"], [("a",)], shout, batch=1, unit="text", cores=64) == [b"A"]
