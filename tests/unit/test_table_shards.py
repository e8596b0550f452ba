"""A table in shards: the same table to a reader, and an edit touches the files of its ids."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_corpora import write_lines
from rooms import files, run_room, write_params

from stages.errors import QuarryError
from stages.tables import TABLES, has_table, read_table, table, write_table


def triples(docids: list[str]) -> pa.Table:
    """Two facts a passage, in the order given."""
    rows = [
        {"docid": d, "seq": n, "subj": d, "rel": "is", "obj": str(n), "text_hash": "h"}
        for d in docids
        for n in (1, 0)
    ]
    return table("triples", rows)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "triples").iterdir()}


@given(st.lists(st.text(max_size=4), unique=True, max_size=12), st.integers(2, 5))
@settings(max_examples=40)
def test_a_reader_sees_the_table_of_one_file(docids: list[str], shards: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        one, many = Path(name, "one"), Path(name, "many")
        one.mkdir()
        many.mkdir()
        write_table(triples(docids), one, "triples")
        write_table(triples(docids[::-1]), many, "triples", shards=shards)
        assert files(one) == ["triples.parquet"]
        assert len(contents(many)) == shards, "empty ones too"
        assert read_table(many, "triples").equals(read_table(one, "triples"))


def test_rows_of_one_id_stay_together_and_a_new_id_changes_one_file(tmp_path: Path) -> None:
    docids = [f"d{i}#0" for i in range(200)]
    for name, ids in (("before", docids), ("after", [*docids, "new#0"])):
        (tmp_path / name).mkdir()
        write_table(triples(ids), tmp_path / name, "triples", shards=8)
    before, after = contents(tmp_path / "before"), contents(tmp_path / "after")
    assert sum(before[n] != after[n] for n in before) == 1
    for path in (tmp_path / "after/triples").iterdir():
        (tmp_path / path.stem).mkdir()
        path.rename(tmp_path / path.stem / "triples.parquet")
        rows = read_table(tmp_path / path.stem, "triples")["docid"].to_pylist()
        assert len(rows) == 2 * len(set(rows)), "both facts of a passage"
        assert 15 <= len(set(rows)) <= 40, "200 ids in 8 shards: 25 each on average"


@pytest.mark.parametrize("damage", ["one is missing", "none is left", "a stranger"])
def test_a_shard_that_is_missing_is_named(damage: str, tmp_path: Path) -> None:
    write_table(triples(["a", "b", "c"]), tmp_path, "triples", shards=3)
    shards = sorted((tmp_path / "triples").iterdir())
    assert [p.name for p in shards] == [f"0000{i}-of-00003.parquet" for i in range(3)]
    for shard in {"one is missing": shards[1:2], "none is left": shards}.get(damage, []):
        shard.unlink()
    if damage == "a stranger":
        (tmp_path / "triples/notes.txt").touch()
    assert has_table(tmp_path, "triples")
    with pytest.raises(QuarryError, match="triples: a shard of table triples is missing"):
        read_table(tmp_path, "triples")


def test_what_follows_a_corpus_in_shards_is_what_follows_one_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARRY_RECORDS", "store")
    rows = [{"id": f"d{i}", "title": "Paris", "text": f"Paris has {i} rivers."} for i in range(9)]
    write_lines(Path("c.jsonl"), rows)
    made = []
    for shards in (1, 3):
        write_params(
            ingest={"c": {"source": "jsonl", "path": "c.jsonl", "shards": shards}},
            triples={"t": {"extractor": "parse", "corpus": "c", "model": "none", "shards": shards}},
            index={"i": {"kind": "bm25", "corpus": "c", "model": "none", "centroids": "none"}},
        )
        run_room("ingest", "c")
        run_room("triples", "t")
        facts = read_table(Path("data/triples/t"), "triples")
        made.append((run_room("index", "i"), facts, files(Path("data/ingest/c"))))
    (one, facts, names), (many, same_facts, shard_names) = made
    assert many == one
    assert same_facts.equals(facts) and facts.num_rows == 9
    assert [n for n in names if "/" in n] == []
    sharded = {Path(n).parts[0] for n in shard_names if "/" in n}
    assert sharded == {"documents", "passages"} and len(shard_names) == len(names) + 2 * 2


def test_the_first_key_of_what_is_sharded_is_an_id() -> None:
    for kind in ("documents", "passages", "triples"):
        assert TABLES[kind].schema.field(TABLES[kind].key[0]).type == pa.string()
