"""Your own records, one JSON object a line, with the fields that the entry names.

``path`` is a file, or a folder of .jsonl files; in a folder, ``queries.jsonl`` and
``qrels/*.tsv`` are questions and judgements, as in BEIR. Fields that are not named are kept in
``meta``. Where records have no id, ``id: null``: a record's id is then the hash of its title and
text, so that it stays when lines are inserted above it.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import Field

from stages.digest import digest
from stages.errors import QuarryError
from stages.ingest.lines import (
    QUERIES,
    canonical_json,
    parse_object,
    read_qrels,
    read_queries,
    read_rows,
)  # fmt: skip
from stages.ingest.source import Raw, Reject, Source, SourceParams, id_field, text_field
from stages.records import RecordStore
from stages.text import canonicalise


class Params(SourceParams):
    """An entry with ``source: jsonl``; ``path`` is a .jsonl file or a folder of them."""

    id: str | None = "id"  # field with the id; null: the hash of title and text
    title: str | None = "title"  # field with the title, which may be missing; null: no titles
    text: str = "text"  # field with the text
    max_line_bytes: int = Field(4_194_304, gt=0)  # longer lines are set aside: oversize


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """One file, or all .jsonl files of a folder in the order of their names."""
    limit = params.max_line_bytes
    if not path.is_dir():
        return Source(read_records(path, params))
    files = sorted(p for p in path.glob("*.jsonl") if p.name != QUERIES)
    if not files:
        raise QuarryError(f"{path}: no .jsonl file in this folder. Name the folder that has them.")
    return Source(
        chain.from_iterable(read_records(file, params) for file in files),
        read_queries(path, max_line_bytes=limit),
        read_qrels(path, max_line_bytes=limit),
    )


def read_records(path: Path, params: Params) -> Iterator[Raw | Reject]:
    """The documents of one file."""

    def parse(line: bytes, locator: str) -> Raw:
        row = parse_object(line)
        return to_document(row, locator, line, id=params.id, title=params.title, text=params.text)

    names = ", ".join(repr(n) for n in (params.id, params.text) if n)
    return read_rows(
        path, parse, name=path.name, expected=f"one JSON object a line with {names}",
        max_line_bytes=params.max_line_bytes,
    )  # fmt: skip


def to_document(
    row: dict[str, Any], locator: str, raw: bytes, *, id: str | None, title: str | None, text: str
) -> Raw:
    """A record as a document, by the names of its fields."""
    docid = id_field(row, id) if id else ""
    name = text_field(row, title) if title else ""
    body = text_field(row, text, required=True)
    docid = docid or digest(canonicalise(name), canonicalise(body))
    rest = {k: v for k, v in row.items() if k not in (id, title, text)}
    return Raw(docid, name, body, locator, canonical_json(rest), raw)
