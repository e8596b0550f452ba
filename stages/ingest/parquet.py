"""Your own records as Parquet, with the columns that the entry names; read a batch at a time.

As ``jsonl``, whose field names, folder layout and rules it shares; a row that is no record has
the locator ``file:row``, counted from 1.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import QuarryError
from stages.ingest.jsonl import Params as RecordParams
from stages.ingest.jsonl import to_document
from stages.ingest.lines import canonical_json, read_qrels, read_queries
from stages.ingest.source import BadRow, Code, Raw, Reject, Source, reject
from stages.records import RecordStore

BATCH_ROWS = 4096


class Params(RecordParams):
    """An entry with ``source: parquet``; ``path`` is a .parquet file or a folder of them."""


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """One file, or all .parquet files of a folder in the order of their names."""
    limit = params.max_line_bytes
    if not path.is_dir():
        return Source(read_records(path, params))
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise QuarryError(f"{path}: no .parquet file in this folder. Name the folder with them.")
    return Source(
        chain.from_iterable(read_records(file, params) for file in files),
        read_queries(path, max_line_bytes=limit),
        read_qrels(path, max_line_bytes=limit),
    )


def read_records(path: Path, params: Params) -> Iterator[Raw | Reject]:
    """The documents of one file.

    Raises:
        QuarryError: not Parquet, damaged, or a column that the entry names is missing or no text.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        raise QuarryError(f"{path}: expected a Parquet file, and it is none: {e}") from None
    with file:
        _check_columns(path, file.schema_arrow, params)
        names = {"id": params.id, "title": params.title, "text": params.text}
        for number, row in enumerate(chain.from_iterable(map(_rows, _batches(path, file))), 1):
            locator, raw = f"{path.name}:{number}", b""
            if isinstance(row, _BadCell):
                yield reject(locator, row.code, row.detail, row.raw)
                continue
            row = {k: v for k, v in row.items() if v is not None}
            try:
                raw = canonical_json(row).encode()
                yield to_document(row, locator, raw, **names)
            except BadRow as e:
                yield reject(locator, e.code, e.detail, raw)


def _batches(path: Path, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    done = 0
    try:
        for batch in file.iter_batches(BATCH_ROWS):
            yield batch
            done += batch.num_rows
    except (pa.ArrowException, OSError) as e:
        raise QuarryError(
            f"{path}, after row {done}: expected {file.metadata.num_rows} rows of Parquet, and the "
            f"file is damaged: {e}. Fetch or write it again."
        ) from None


class _BadCell(NamedTuple):
    """Why a row has no value in Python, and the cell's bytes if it is text."""

    code: Code
    detail: str
    raw: bytes


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any] | _BadCell]:
    """A batch's rows; only one that has a bad cell is read cell by cell."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        pass
    return [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _row(one: pa.RecordBatch) -> dict[str, Any] | _BadCell:
    row = {}
    for name, cell in zip(one.schema.names, one.columns, strict=True):
        try:
            row[name] = cell[0].as_py()
        except UnicodeDecodeError as e:
            detail = f"column '{name}' is not UTF-8 at byte {e.start} of the cell"
            return _BadCell("decode", detail, e.object)
        except (ValueError, OverflowError) as e:  # a time that Python cannot hold
            return _BadCell("schema", f"column '{name}' cannot be read: {e}", b"")
    return row


def _check_columns(path: Path, schema: pa.Schema, params: Params) -> None:
    for key, name in (("id", params.id), ("title", params.title), ("text", params.text)):
        if name is None or (key == "title" and name not in schema.names):
            continue
        if name not in schema.names:
            raise QuarryError(
                f"{path}: expected a column '{name}' ({key}); there are: "
                f"{', '.join(schema.names) or 'none'}. Name the right one: {key} in params.yaml."
            )
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not text and not (key == "id" and pa.types.is_integer(kind)):
            raise QuarryError(
                f"{path}: column '{name}' ({key}) is {kind}, expected text. "
                f"Name another one: {key} in params.yaml."
            )
