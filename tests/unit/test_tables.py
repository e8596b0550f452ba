"""The contract of the tables: what a reader may rely on, and what a wrong file says."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.errors import QuarryError
from stages.tables import (
    TABLES,
    check_table,
    empty_table,
    read_table,
    sort_table,
    table,
    write_table,
)

ROWS = [{"qid": q, "docid": d, "rel": r} for q, d, r in [("q2", "a", 1), ("q1", "b", 0)]]


@pytest.mark.parametrize("kind", TABLES)
def test_an_empty_table_is_legal_and_comes_back_with_its_schema(kind: str, tmp_path: Path) -> None:
    write_table(empty_table(kind), tmp_path, kind)
    back = read_table(tmp_path, kind)
    assert back.num_rows == 0
    assert back.schema == TABLES[kind].schema


def test_rows_come_back_in_the_order_of_the_key(tmp_path: Path) -> None:
    write_table(table("qrels", ROWS), tmp_path, "qrels")
    assert read_table(tmp_path, "qrels").to_pylist() == [ROWS[1], ROWS[0]]


def test_equal_rows_in_any_order_and_any_chunks_make_equal_bytes(tmp_path: Path) -> None:
    rows = [{"qid": f"q{i:03}", "docid": "d", "rel": i} for i in range(100)]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(100)]
    chunked = pa.concat_tables([table("qrels", shuffled[:7]), table("qrels", shuffled[7:])])
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, t in ((one, table("qrels", rows)), (two, chunked)):
        folder.mkdir()
        write_table(t, folder, "qrels")
    assert (one / "qrels.parquet").read_bytes() == (two / "qrels.parquet").read_bytes()


def test_rows_with_equal_keys_keep_the_order_they_came_in() -> None:
    rows = [{"qid": "q", "docid": "d", "rel": i % 7} for i in range(100)]
    assert sort_table(table("qrels", rows), "qrels").to_pylist() == rows


def test_columns_in_another_order_are_put_right() -> None:
    t = table("qrels", ROWS).select(["rel", "docid", "qid"])
    assert check_table(t, "qrels", where="here").schema.names == ["qid", "docid", "rel"]


def test_text_with_lone_carriage_returns_and_astral_characters_survives(tmp_path: Path) -> None:
    odd = {"qid": "0007", "docid": "a\r\n\t𝒳 e\u0301 \u202e", "rel": -1}
    write_table(table("qrels", [odd]), tmp_path, "qrels")
    assert read_table(tmp_path, "qrels").to_pylist() == [odd]


def test_a_row_without_a_column_is_an_error_wherever_it_stands() -> None:
    with pytest.raises(
        QuarryError, match=r"table qrels: expected columns .*got \['docid', 'qid'\]"
    ):
        table("qrels", [ROWS[0], {"qid": "q", "docid": "d"}])


def put(folder: Path, **columns: pa.Array) -> Path:
    """A qrels.parquet as a stranger would write it."""
    path = folder / "qrels.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_a_missing_column_names_the_file_the_column_and_what_is_there(tmp_path: Path) -> None:
    path = put(tmp_path, qid=pa.array(["q"]), rel=pa.array([1], pa.int32()))
    with pytest.raises(QuarryError) as e:
        read_table(tmp_path, "qrels")
    assert str(e.value) == (
        f"{path}: table qrels has no column 'docid' (string); columns there: qid, rel. "
        f"Rebuild it with the stage that writes it."
    )


def test_a_column_of_another_type_is_named_with_both_types(tmp_path: Path) -> None:
    path = put(tmp_path, qid=pa.array([1]), docid=pa.array(["d"]), rel=pa.array([1], pa.int32()))
    with pytest.raises(QuarryError) as e:
        read_table(tmp_path, "qrels")
    assert str(e.value) == (
        f"{path}: table qrels, column 'qid' is int64, expected string. "
        f"Rebuild it with the stage that writes it."
    )


def test_an_unknown_column_is_an_error(tmp_path: Path) -> None:
    t = table("qrels", ROWS).append_column("grade", pa.array([1, 2]))
    with pytest.raises(QuarryError, match="does not know: grade; expected qid, docid, rel"):
        write_table(t, tmp_path, "qrels")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_table_says_which_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match=r"qrels.parquet: table qrels is missing. Run the stage"):
        read_table(tmp_path, "qrels")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"qid\tdocid\trel\nq\td\t1\n"])
def test_a_file_that_is_not_parquet_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "qrels.parquet").write_bytes(content)
    with pytest.raises(QuarryError, match=r"qrels.parquet: not a readable Parquet file \("):
        read_table(tmp_path, "qrels")


def test_a_truncated_parquet_file_is_an_error_not_fewer_rows(tmp_path: Path) -> None:
    path = write_table(table("qrels", ROWS * 500), tmp_path, "qrels")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(QuarryError, match="not a readable Parquet file"):
        read_table(tmp_path, "qrels")


def test_nan_is_refused_with_its_row_and_nothing_is_written(tmp_path: Path) -> None:
    rows = [{"qid": "q", "docid": d, "rank": 1, "score": s} for d, s in [("a", 1.0), ("b", np.nan)]]
    with pytest.raises(QuarryError) as e:
        write_table(table("runs", rows), tmp_path, "runs")
    assert str(e.value) == (
        f"{tmp_path / 'runs.parquet'}: table runs, column 'score' is NaN in row 1. "
        f"Look at what computed it; a value that is not known is null."
    )
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_score_and_an_unknown_one_are_legal(tmp_path: Path) -> None:
    rows = [{"qid": "q", "docid": "a", "rank": r, "score": s} for r, s in [(1, np.inf), (2, None)]]
    write_table(table("runs", rows), tmp_path, "runs")
    assert read_table(tmp_path, "runs").to_pylist() == rows


def test_a_null_in_a_key_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        QuarryError, match=r"table qrels, column 'docid' has an empty cell \(null\)"
    ):
        write_table(table("qrels", [{"qid": "q", "docid": None, "rel": 1}]), tmp_path, "qrels")


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "split=train"
    folder.mkdir()
    write_table(table("qrels", ROWS), folder, "qrels")
    assert read_table(folder, "qrels").schema.names == ["qid", "docid", "rel"]
