"""The record store: nothing is computed twice, and nothing wrong ever comes out of it."""

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.digest import digest
from stages.records import RecordStore

ROOT = Path(__file__).resolve().parents[2]


class Shouter:
    """Upper case, and a count of what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        self.asked += texts
        return [t.upper().encode() for t in texts]


def shout(store: RecordStore, texts: list[str], fn, *, batch: int = 3) -> list[bytes]:
    return store.compute([digest("shout", t) for t in texts], texts, fn, batch=batch, unit="text")


def edit(store_folder: Path, statement: str, *values: object) -> None:
    """Changes the database behind the store's back."""
    db = sqlite3.connect(store_folder / "records.sqlite")
    with db:
        db.execute(statement, values)
    db.close()


@settings(max_examples=30, deadline=None)
@given(
    runs=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), max_size=5),
    batch=st.integers(1, 5),
)
def test_each_new_record_is_computed_once_and_values_come_back_in_order(runs, batch) -> None:
    fn, seen = Shouter(), set()
    with tempfile.TemporaryDirectory() as folder:
        for texts in runs:
            with RecordStore(Path(folder)) as store:
                before = len(fn.asked)
                assert shout(store, texts, fn, batch=batch) == [t.upper().encode() for t in texts]
                assert sorted(fn.asked[before:]) == sorted(set(texts) - seen)
                assert store.misses == len(set(texts) - seen)
                assert store.hits == len(set(texts) & seen)
                seen |= set(texts)


def test_without_records_nothing_is_called(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        assert shout(store, [], fn=None) == []


def test_batches_kept_before_a_failure_are_not_computed_again(tmp_path: Path) -> None:
    fn = Shouter()

    def fails_at_g(texts: Sequence[str]) -> list[bytes]:
        if "g" in texts:
            raise RuntimeError("killed")
        return fn(texts)

    with RecordStore(tmp_path) as store, pytest.raises(RuntimeError, match="killed"):
        shout(store, list("abcdefgh"), fails_at_g)
    assert fn.asked == list("abcdef")
    with RecordStore(tmp_path) as store:
        assert shout(store, list("abcdefgh"), fn) == [c.encode() for c in "ABCDEFGH"]
    assert fn.asked == list("abcdefgh")


def test_a_function_that_returns_too_few_values_is_an_error_and_keeps_nothing(tmp_path) -> None:
    with RecordStore(tmp_path) as store:
        with pytest.raises(ValueError, match="shorter"):
            shout(store, ["a", "b"], lambda texts: [b"A"])
        assert store.get_many([digest("shout", "a")]) == {}


def test_a_corrupted_value_is_dropped_and_computed_again(tmp_path: Path) -> None:
    fn = Shouter()
    with RecordStore(tmp_path) as store:
        shout(store, ["a", "b"], fn)
    edit(tmp_path, "UPDATE records SET value = x'00' WHERE key = ?", digest("shout", "a"))
    with RecordStore(tmp_path) as store:
        assert shout(store, ["a", "b"], fn) == [b"A", b"B"]
        assert (store.corrupt, store.hits, store.misses) == (1, 1, 1)
    assert fn.asked == ["a", "b", "a"]


def test_a_value_under_another_key_is_corrupt_though_its_bytes_are_whole(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        store.put_many({"one": b"1"})
    edit(tmp_path, "UPDATE records SET key = 'two'")
    with RecordStore(tmp_path) as store:
        assert store.get_many(["two"]) == {}
        assert store.corrupt == 1


def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, caplog) -> None:
    (tmp_path / "records.sqlite").write_bytes(
        b"not a database at all, and longer than a header" * 9
    )
    fn = Shouter()
    with RecordStore(tmp_path) as store:
        assert shout(store, ["a"], fn) == [b"A"]
    assert "is damaged (file is not a database); moved to records.corrupt-" in caplog.text
    assert len(list(tmp_path.glob("records.corrupt-*"))) == 1
    with RecordStore(tmp_path) as store:
        shout(store, ["a"], fn)
    assert fn.asked == ["a"]


@pytest.mark.parametrize("damage", ["middle", "truncated"])
def test_damage_inside_the_database_costs_time_but_no_result(damage, tmp_path, caplog) -> None:
    texts = [f"{i}" * 400 for i in range(300)]
    fn = Shouter()
    with RecordStore(tmp_path) as store:
        expected = shout(store, texts, fn, batch=50)
    path = tmp_path / "records.sqlite"
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(
        content[: 2 * third] if damage == "truncated"
        else content[:third] + b"\xa5" * third + content[2 * third :]
    )  # fmt: skip
    with RecordStore(tmp_path) as store:
        assert shout(store, texts, fn, batch=50) == expected
    assert "is damaged" in caplog.text
    with RecordStore(tmp_path) as store:
        before = len(fn.asked)
        assert shout(store, texts, fn) == expected
        assert len(fn.asked) == before


def test_eviction_drops_the_least_recently_used_until_the_limit_holds(tmp_path: Path) -> None:
    value = bytes(1000)
    keys = [f"{i:03}" for i in range(300)]
    with RecordStore(tmp_path) as store:
        store.put_many(dict.fromkeys(keys, value))
    edit(tmp_path, "UPDATE records SET used = 1000 + CAST(key AS INTEGER)")
    edit(tmp_path, "UPDATE records SET used = 9000 WHERE key = '000'")
    with RecordStore(tmp_path, limit_bytes=100 * 1000) as store:
        assert store.size_bytes() == 300 * 1000
    with RecordStore(tmp_path, limit_bytes=100 * 1000) as store:
        assert store.size_bytes() == 100 * 1000
        kept = [k for k in keys if store.get_many([k])]
    assert kept == ["000", *keys[-99:]]
    assert (tmp_path / "records.sqlite").stat().st_size < 2 * 100 * 1000


def test_reading_a_record_saves_it_from_eviction(tmp_path: Path) -> None:
    with RecordStore(tmp_path) as store:
        store.put_many({k: bytes(100) for k in ("old", "older")})
    edit(tmp_path, "UPDATE records SET used = CASE key WHEN 'old' THEN 2 ELSE 1 END")
    with RecordStore(tmp_path, limit_bytes=100) as store:
        store.get_many(["older"])
        assert store.evict() == 1
        assert set(store.get_many(["old", "older"])) == {"older"}


def test_the_environment_names_a_shared_store(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("QUARRY_RECORDS", str(tmp_path / "shared"))
    with RecordStore() as store:
        store.put_many({"k": b"v"})
    assert (tmp_path / "shared" / "records.sqlite").exists()


WRITER = """
import sys
from pathlib import Path
from stages.records import RecordStore
with RecordStore(Path(sys.argv[1])) as store:
    for at in range(0, 300, 10):
        keys = [f"{sys.argv[2]}-{i}" for i in range(at, at + 10)] + [f"both-{at}"]
        store.compute(keys, keys, lambda ks: [k.encode() for k in ks], batch=4, unit="key")
"""


def test_processes_that_start_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, n], cwd=ROOT) for n in names
    ]
    assert [p.wait(timeout=60) for p in running] == [0, 0, 0]
    keys = [f"{n}-{i}" for n in names for i in range(300)]
    with RecordStore(tmp_path) as store:
        assert store.get_many(keys) == {k: k.encode() for k in keys}
        assert len(store.get_many([f"both-{at}" for at in range(0, 300, 10)])) == 30
        assert store.corrupt == 0
