"""Every row read is kept, a repeat, or in quarantine with its reason; one bad row stops nothing."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_corpora import column, ingest, rows, write_lines

from stages.errors import QuarryError
from stages.ingest.lines import read_rows
from stages.ingest.source import Reject

GOOD = [{"id": f"g{i}", "title": "", "text": f"Good document {chr(97 + i)}."} for i in range(20)]

FAULTS = [
    (b'{"id": "t", "text": "trunc', "json"),
    (b'{"id": "n", "text": "a\x00b"}', "json"),  # a raw NUL is no JSON
    (b'{"id": "u", "text": "\xff\xfe"}', "decode"),
    (b'["a", "list"]', "schema"),
    (b'{"id": "m"}', "schema"),  # no text
    (b'{"text": "no id"}', "schema"),
    (b'{"id": "", "text": "empty id"}', "schema"),
    (b'{"id": "k", "text": 7}', "schema"),
    (b'{"id": "e", "title": " ", "text": "\\n\\u0000"}', "empty_text"),
    (b'{"id": "l", "text": "' + b"x" * 600 + b'"}', "too_long"),
    (b'{"id": "o", "text": "' + b"y" * 3000 + b'"}', "oversize"),
    (b'{"id": "g3", "text": "Another text."}', "id_conflict"),
]


def test_each_fault_has_its_code_its_line_and_its_bytes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [*GOOD, *(line for line, _ in FAULTS)])
    corpus = ingest(
        "jsonl", path, tmp_path / "r", max_chars=500, max_line_bytes=2000, quarantine_max=0.5
    )
    found = {r["locator"]: r for r in rows(corpus, "quarantine")}
    assert len(found) == len(FAULTS)
    for number, (line, code) in enumerate(FAULTS, start=len(GOOD) + 1):
        bad = found[f"c.jsonl:{number}"]
        assert bad["code"] == code, bad["detail"]
        assert bad["raw_sha256"] == hashlib.sha256(line + b"\n").hexdigest()
        assert (line + b"\n").startswith(bad["raw"])
    stats = corpus.stats["documents"]
    assert stats["read"] == len(GOOD) + len(FAULTS) == stats["kept"] + len(found)
    assert stats["quarantined"] == {
        "json": 2, "decode": 1, "schema": 5, "empty_text": 1, "too_long": 1, "oversize": 1,
        "id_conflict": 1,
    }  # fmt: skip


def test_details_name_the_field_and_what_was_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [*GOOD, {"id": "a", "body": "x"}, {"id": 1.5}])
    details = column(ingest("jsonl", path, tmp_path / "r"), "quarantine", "detail")
    assert details[0] == "field 'text' is missing, expected a string; fields there: id, body"
    assert details[1] == "field 'id' is float, expected a string; fields there: id"


def test_ids_are_strings_and_keep_leading_zeros(tmp_path: Path) -> None:
    lines = [{"id": "007", "text": "a"}, {"id": 7, "text": "b"}, {"id": "7.0", "text": "c"}]
    path = write_lines(tmp_path / "c.jsonl", lines)
    assert column(ingest("jsonl", path, tmp_path / "r"), "documents", "docid") == [
        "007",
        "7",
        "7.0",
    ]


def test_the_same_row_twice_is_a_repeat_and_no_conflict(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [GOOD[0], GOOD[1], GOOD[0]])
    stats = ingest("jsonl", path, tmp_path / "r").stats["documents"]
    assert stats == {"read": 3, "kept": 2, "repeated": 1, "quarantined": {}, "duplicates": 0}


def test_a_mark_blank_lines_windows_lines_and_no_last_newline_are_ordinary(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "x"}\r\n\n   \n{"id": "b", "text": "y"}')
    corpus = ingest("jsonl", path, tmp_path / "r")
    assert column(corpus, "documents", "text") == ["x", "y"]
    assert column(corpus, "documents", "locator") == ["c.jsonl:1", "c.jsonl:4"]


def test_ten_megabytes_of_one_line_are_set_aside_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "c.jsonl"
    with path.open("wb") as f:
        f.write(b'{"id": "big", "text": "' + b"x" * 10_000_000 + b'"}\n')
        f.write(json.dumps(GOOD[0]).encode())

    def parse(line: bytes, locator: str) -> bytes:
        return line

    tracemalloc.start()
    big, good = read_rows(path, parse, name="c", expected="", max_line_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(big, Reject) and big.code == "oversize" and len(big.raw) == 65_536
    assert big.sha256 == hashlib.sha256(path.read_bytes().splitlines(True)[0]).hexdigest()
    assert good == json.dumps(GOOD[0]).encode()
    assert peak < 4 * 2**20


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PAR1\x15\x04\xffnot lines", "It looks like a Parquet file (source: parquet reads"),
        (b"\x1f\x8b\x08\x00\xff\xff", "It looks like gzip: unpack it first"),
        (b'[\n{"id": "a", "text": "x"},\n{"id": "b", "text": "y"}\n]', "a JSON array"),
        (b"id,text\n1,hello\n", "not JSON"),
    ],
)
def test_a_file_that_is_not_what_it_claims_is_an_error_with_file_line_and_expectation(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(QuarryError) as e:
        ingest("jsonl", path, tmp_path / "r")
    message = str(e.value)
    assert message.startswith(f"{path}, line 1: expected one JSON object a line with 'id', 'text';")
    assert says in message


def test_rows_of_another_schema_are_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [{"key": "a", "body": "x"}] * 3)
    with pytest.raises(QuarryError, match=r"line 1: .*field 'id' is missing.*there: key, body"):
        ingest("jsonl", path, tmp_path / "r")


def test_ten_bad_rows_pass_and_more_need_a_hundred_times_as_many(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [*GOOD, *[b"{"] * 10])
    assert ingest("jsonl", path, tmp_path / "r").stats["documents"]["quarantined"] == {"json": 10}
    path = write_lines(tmp_path / "d.jsonl", [*GOOD, *[b"{"] * 11])
    with pytest.raises(QuarryError) as e:
        ingest("jsonl", path, tmp_path / "r")
    assert str(e.value) == (
        f"{path}: 11 of 31 documents cannot be used, at most 1.00% may: json 11. The first is "
        f"d.jsonl:21 (json: not JSON: unexpected end of data: line 2 column 1 (char 2)). "
        f"Repair the source, or raise quarantine_max of this entry in params.yaml."
    )


def test_a_share_that_is_given_is_strict(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [*GOOD, b"{"])
    with pytest.raises(QuarryError, match=r"1 of 21 documents cannot be used, at most 0\.00% may"):
        ingest("jsonl", path, tmp_path / "r", quarantine_max=0.0)
    assert ingest("jsonl", path, tmp_path / "r", quarantine_max=1 / 21).stats["documents"]["kept"]


def test_an_empty_corpus_and_a_corpus_of_one_document_are_ordinary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing to read is no error: documents may come. It is said, with where to look."""
    (tmp_path / "none.jsonl").write_bytes(b"")
    corpus = ingest("jsonl", tmp_path / "none.jsonl", tmp_path / "r", chunk={"mode": "cdc"})
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "there is no document in it" in said and "Look at path" in said
    caplog.clear()
    assert {k: t.num_rows for k, t in corpus.tables.items()} == {
        "documents": 0, "passages": 0, "queries": 0, "qrels": 0, "quarantine": 0,
    }  # fmt: skip
    path = write_lines(tmp_path / "one.jsonl", GOOD[:1])
    assert column(ingest("jsonl", path, tmp_path / "r"), "passages", "docid") == ["g0#0"]
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            pa.table({"key": ["a"], "text": ["x"]}),
            "expected a column 'id' (id); there are: key, text",
        ),
        (pa.table({"id": ["a"], "text": [1.5]}), "column 'text' (text) is double, expected text"),
    ],
)
def test_parquet_of_another_schema_is_an_error(tmp_path: Path, table: pa.Table, says: str) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(table, path)
    with pytest.raises(QuarryError) as e:
        ingest("parquet", path, tmp_path / "r")
    assert str(path) in str(e.value) and says in str(e.value)


def test_a_text_file_named_parquet_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    path.write_text("no parquet")
    with pytest.raises(QuarryError, match="expected a Parquet file, and it is none"):
        ingest("parquet", path, tmp_path / "r")


def test_a_parquet_cell_that_is_not_utf8_costs_its_row_and_no_other(tmp_path: Path) -> None:
    cells = [b"one", b"t\xffo", b"three", b"four"]
    notes = pa.array([b"fine", b"fine", b"\xfe", b"fine"]).cast(pa.string(), safe=False)
    text = pa.array(cells).view(pa.string())
    pq.write_table(
        pa.table({"id": list("abcd"), "text": text, "note": notes}), tmp_path / "c.parquet"
    )
    corpus = ingest("parquet", tmp_path / "c.parquet", tmp_path / "r")
    assert column(corpus, "documents", "docid") == ["a", "d"]
    found = {r["locator"]: (r["code"], r["detail"], r["raw"]) for r in rows(corpus, "quarantine")}
    assert found == {
        "c.parquet:2": ("decode", "column 'text' is not UTF-8 at byte 1 of the cell", b"t\xffo"),
        "c.parquet:3": ("decode", "column 'note' is not UTF-8 at byte 0 of the cell", b"\xfe"),
    }


def test_a_parquet_time_that_python_cannot_hold_costs_its_row_and_no_other(tmp_path: Path) -> None:
    late = pa.array([0, 2**62], pa.timestamp("ms"))
    pq.write_table(
        pa.table({"id": ["a", "b"], "text": ["x", "y"], "at": late}), tmp_path / "c.parquet"
    )
    corpus = ingest("parquet", tmp_path / "c.parquet", tmp_path / "r")
    assert column(corpus, "documents", "docid") == ["a"]
    assert column(corpus, "quarantine", "code") == ["schema"]


def test_fields_too_deep_to_be_kept_cost_their_row_and_no_other(tmp_path: Path) -> None:
    deep = b'{"id": "d", "text": "x", "more": ' + b'{"a":' * 300 + b"1" + b"}" * 301
    path = write_lines(tmp_path / "c.jsonl", [GOOD[0], deep])
    corpus = ingest("jsonl", path, tmp_path / "r")
    assert column(corpus, "quarantine", "code") == ["schema"]
    assert corpus.stats["documents"]["kept"] == 1


def test_a_damaged_parquet_page_is_an_error_that_says_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    names = [f"a document {i}" for i in range(9000)]
    pq.write_table(
        pa.table({"id": names, "text": names}), path, row_group_size=4096, use_dictionary=False,
        compression="snappy",
    )  # fmt: skip
    damaged = bytearray(path.read_bytes())
    at = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    damaged[at + 40 : at + 4000] = b"\xff" * 3960
    path.write_bytes(damaged)
    with pytest.raises(QuarryError, match=r"after row 4096: expected 9000 rows of Parquet, and"):
        ingest("parquet", path, tmp_path / "r")
