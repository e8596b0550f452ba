"""Rows of text files, a line at a time and in bounded memory; a bad line is a Reject."""

import codecs
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson

from stages.errors import QuarryError
from stages.ingest.source import (  # fmt: skip
    RAW_BYTES,
    BadRow,
    Judgement,
    Question,
    Reject,
    id_field,
    reject,
    text_field,
)

R = TypeVar("R")
Parse = Callable[[bytes, str], R]  # (line, locator) -> row; raises BadRow

# What a file really is, where its first bytes tell.
_MAGIC = {
    b"PAR1": "a Parquet file (source: parquet reads those)",
    b"\x1f\x8b": "gzip: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"%PDF": "a PDF (source: files reads those)",
    b"[": "a JSON array: write one object a line",
}


def read_rows(
    path: Path, parse: Parse[R], *, name: str, expected: str, max_line_bytes: int
) -> Iterator[R | Reject]:
    """Every line but blank ones, parsed; ``name`` is the file in locators, ``name:line``.

    Raises:
        QuarryError: the file begins like one of another kind, or there are lines and none of
            them has the form that was expected.
    """
    first: Reject | None = None
    good = 0
    with path.open("rb") as f:
        for number, line, sha256 in _lines(f, max_line_bytes):
            locator = f"{name}:{number}"
            try:
                if sha256 is not None:
                    raise BadRow("oversize", f"a line of more than {max_line_bytes} bytes")
                row = parse(line, locator)
            except BadRow as e:
                bad = reject(locator, e.code, e.detail, line)
                if sha256 is not None:
                    bad = bad._replace(sha256=sha256)
                good += e.code not in ("json", "decode", "schema")
                if first is None and not good and e.code != "schema" and _looks_like(path):
                    raise _not_this(path, bad, expected) from None
                first = first or bad
                yield bad
            else:
                good += 1
                yield row
    if first is not None and not good:
        raise _not_this(path, first, expected)


def _not_this(path: Path, first: Reject, expected: str) -> QuarryError:
    return QuarryError(
        f"{path}, line {first.locator.rpartition(':')[2]}: expected {expected}; "
        f"{first.detail}.{_looks_like(path)} Name another file or another source."
    )


def _looks_like(path: Path) -> str:
    with path.open("rb") as f:
        head = f.read(64).lstrip()
    kind = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
    return f" It looks like {kind}." if kind else ""


def _lines(f: BinaryIO, limit: int) -> Iterator[tuple[int, bytes, str | None]]:
    """(number from 1, line, None); of a line over ``limit`` its head and its whole SHA-256."""
    number = 0
    if f.read(3) != codecs.BOM_UTF8:
        f.seek(0)
    while line := f.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            sha = hashlib.sha256(line)
            head = line[:RAW_BYTES]
            while (line := f.readline(1 << 20)) and not line.endswith(b"\n"):
                sha.update(line)
            sha.update(line)
            yield number, head, sha.hexdigest()
        elif not line.isspace():
            yield number, line, None


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        BadRow: ``decode`` (not UTF-8), ``json`` or ``schema`` (JSON, but no object).
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as u:
            raise BadRow("decode", f"not UTF-8 at byte {u.start} of the line") from None
        raise BadRow("json", f"not JSON: {e}") from None
    if not isinstance(row, dict):
        raise BadRow("schema", f"expected a JSON object, got {type(row).__name__}")
    return row


def canonical_json(value: dict[str, Any]) -> str:
    """Sorted keys, no blanks; "{}" for nothing. What JSON does not know is written as text.

    Raises:
        BadRow: ``schema``: too deep, or a number of more than 64 bits.
    """
    if not value:
        return "{}"
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError as e:
        raise BadRow("schema", f"fields that cannot be kept as JSON: {e}") from None


# -- queries and judgements beside a corpus ------------------------------------------------------

QUERIES, QRELS = "queries.jsonl", "qrels"
_PRECEDENCE = ("test", "dev", "validation", "train")  # a query judged twice is not trained on
_QUERY_FIELDS = {"_id", "id", "text", "question", "answers", "options", "split"}


def read_queries(folder: Path, *, max_line_bytes: int) -> Iterator[Question | Reject]:
    """``queries.jsonl``: ``_id`` or ``id``, ``text`` or ``question``, optional ``answers``,
    ``options`` and ``split``. No file, no queries.

    A query without ``split`` has that of the judgement file that names it; "unjudged" if none
    does, "test" if the folder has no judgements at all.
    """
    path = folder / QUERIES
    if not path.exists():
        return
    split_of = _splits(folder)

    def parse(line: bytes, locator: str) -> Question:
        row = parse_object(line)
        qid = id_field(row, "_id" if "_id" in row else "id")
        split = text_field(row, "split") or split_of.get(qid, "unjudged" if split_of else "test")
        return Question(
            qid, text_field(row, "text" if "text" in row else "question", required=True), split,
            locator, strings(row, "answers"), strings(row, "options"),
            canonical_json({k: v for k, v in row.items() if k not in _QUERY_FIELDS}), line,
        )  # fmt: skip

    yield from read_rows(
        path, parse, name=QUERIES, max_line_bytes=max_line_bytes,
        expected="one JSON object a line with '_id' and 'text'",
    )  # fmt: skip


def strings(row: dict[str, Any], name: str) -> tuple[str, ...]:
    """A list of strings under ``name``; a mapping gives its values by key, nothing gives none."""
    value = row.get(name)
    if isinstance(value, dict):
        value = [value[k] for k in sorted(value)]
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise BadRow("schema", f"field '{name}' must be a list of strings")
    return tuple(value)


def _qrels_files(folder: Path) -> list[Path]:
    """Judgement files, the split that wins first."""
    files = sorted((folder / QRELS).glob("*.tsv"))
    rank = {split: i for i, split in enumerate(_PRECEDENCE)}
    return sorted(files, key=lambda p: rank.get(p.stem, len(rank)))


def _splits(folder: Path) -> dict[str, str]:
    """The split of every query that a line of judgements names, whatever grade it gives."""
    split_of: dict[str, str] = {}
    for path in _qrels_files(folder):
        with path.open("rb") as f:
            for number, line, _ in _lines(f, 1 << 16):
                try:
                    qid, _, grade = _judgement_cells(line)
                except BadRow:
                    continue  # read_qrels sets it aside
                if number > 1 or _is_number(grade):
                    split_of.setdefault(qid, path.stem)
    return split_of


def read_qrels(folder: Path, *, max_line_bytes: int) -> Iterator[Judgement | Reject]:
    """``qrels/*.tsv``: query, document, grade by tabs or blanks; also the four columns of TREC.

    The first line is a header if its grade is no number. Grades are whole numbers, 1.0 is one. No
    folder, or no queries to judge for: no judgements."""
    for path in _qrels_files(folder) if (folder / QUERIES).exists() else []:
        rows = read_rows(
            path, _parse_judgement, name=f"{QRELS}/{path.name}", max_line_bytes=max_line_bytes,
            expected="query-id, corpus-id and score, separated by tabs",
        )  # fmt: skip
        yield from (r for r in rows if r is not None)


def _parse_judgement(line: bytes, locator: str) -> Judgement | None:
    qid, docid, grade = _judgement_cells(line)
    if locator.endswith(":1") and not _is_number(grade):
        return None  # the header
    return Judgement(qid, docid, _grade(grade), locator, line)


def _judgement_cells(line: bytes) -> tuple[str, str, str]:
    """Query, document and grade as they stand there."""
    try:
        cells = line.decode().strip("\r\n").split("\t")
    except UnicodeDecodeError as e:
        raise BadRow("decode", f"not UTF-8 at byte {e.start} of the line") from None
    if len(cells) == 1:
        cells = cells[0].split()
    if len(cells) == 4:  # TREC: query, iteration, document, grade
        cells = [cells[0], *cells[2:]]
    if len(cells) != 3:
        raise BadRow("schema", f"expected 3 columns separated by tabs, got {len(cells)}")
    qid, docid, grade = cells
    return qid.strip(), docid.strip(), grade.strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _grade(text: str) -> int:
    """A whole number, perhaps written as 1.0, that fits the table's 32 bits."""
    try:
        grade = int(text)
    except ValueError:
        number = float(text) if _is_number(text) else math.nan
        if not number.is_integer():
            raise BadRow("schema", f"grade {text!r} is not a whole number") from None
        grade = int(number)
    if not -(2**31) <= grade < 2**31:
        raise BadRow("schema", f"grade {text!r} has more than 32 bits")
    return grade
