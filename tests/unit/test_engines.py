"""Who computes: the seam between the record store and an engine, without Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from stages.engines import ENGINES
from stages.errors import QuarryError
from stages.index.flat import Params as Flat
from stages.ingest.jsonl import Params as Jsonl
from stages.records import RecordStore
from stages.triples.parse import Params as Parse

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["c", "a", "b", "a", "d", "e"]


def upper(batch: list[str]) -> list[bytes]:
    return [text.upper().encode() for text in batch]


def test_an_entry_that_names_no_engine_is_computed_here() -> None:
    slots = {"corpus": "c", "model": "m", "centroids": "none"}
    for entry in (
        Flat(kind="flat", **slots), Jsonl(source="jsonl", path="p"),
        Parse(extractor="parse", corpus="c", model="none"),
    ):  # fmt: skip
        assert entry.engine == "local"


def test_ray_is_imported_by_nobody_who_does_not_ask_for_it() -> None:
    code = (
        "import sys; from stages.engines import ENGINES; f = lambda records: records;"
        "print(list(ENGINES['local'](f, iter([(['k'], ['r'])]), cores=1)), 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[(['k'], ['r'])] False", done.stderr


def test_batches_may_come_back_in_any_order(tmp_path: Path) -> None:
    seen = []

    def backwards(fn, batches, *, cores):
        seen.append(cores)
        for keys, records in reversed(list(batches)):
            yield keys[::-1], fn(records[::-1])

    with RecordStore(tmp_path, apply=backwards) as store:
        made = store.compute(KEYS, KEYS, upper, batch=2, unit="key", cores=3)
    assert made == [b"C", b"A", b"B", b"A", b"D", b"E"]
    assert seen == [3]


def test_what_an_engine_has_given_is_kept_when_it_fails(tmp_path: Path) -> None:
    def one_then_failure(fn, batches, *, cores):
        keys, records = next(batches)
        yield keys, fn(records)
        raise QuarryError("the cluster is gone")

    with RecordStore(tmp_path, apply=one_then_failure) as store:
        with pytest.raises(QuarryError, match="cluster is gone"):
            store.compute(KEYS, KEYS, upper, batch=2, unit="key")
        assert store.get_many(KEYS) == {"c": b"C", "a": b"A"}


def test_a_record_is_looked_up_when_its_batch_is_due(tmp_path: Path) -> None:
    looked_up = []

    class Lazy(list):
        def __getitem__(self, i):
            looked_up.append(i)
            return super().__getitem__(i)

    def first_only(fn, batches, *, cores):
        keys, records = next(batches)
        assert len(looked_up) == 2
        yield keys, fn(records)
        yield from ENGINES["local"](fn, batches, cores=cores)

    with RecordStore(tmp_path, apply=first_only) as store:
        store.compute(KEYS, Lazy(KEYS), upper, batch=2, unit="key")
    assert len(looked_up) == len(set(KEYS))


def test_without_ray_the_engine_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with RecordStore(tmp_path, apply=ENGINES["ray"]) as store:
        with pytest.raises(QuarryError, match=r"extra 'ray'.*pip install.*engine: local"):
            store.compute(["k"], [("text",)], upper, batch=1, unit="key")
        store.put_many({"k": b"v"})
        assert store.compute(["k"], [("text",)], upper, batch=1, unit="key") == [b"v"]
