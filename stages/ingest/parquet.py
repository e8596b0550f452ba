"""Your own records as Parquet, with the columns that the entry names; read a batch at a time.

As ``jsonl``, whose field names, folder layout and rules it shares; a row that is no record has
the locator ``file:row``, counted from 1.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import QuarryError
from stages.ingest.jsonl import Params as RecordParams
from stages.ingest.jsonl import to_document
from stages.ingest.lines import canonical_json, read_qrels, read_queries
from stages.ingest.source import BadRow, Raw, Reject, Source, reject
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
        QuarryError: not Parquet, or a column that the entry names is missing or no text.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise QuarryError(f"{path}: expected a Parquet file, and it is none: {e}") from None
    with file:
        _check_columns(path, file.schema_arrow, params)
        number = 0
        for batch in file.iter_batches(BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                locator = f"{path.name}:{number}"
                row = {k: v for k, v in row.items() if v is not None}
                raw = canonical_json(row).encode()
                names = {"id": params.id, "title": params.title, "text": params.text}
                try:
                    yield to_document(row, locator, raw, **names)
                except BadRow as e:
                    yield reject(locator, e.code, e.detail, raw)


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
