"""What a source yields: documents, questions and judgements as they stand, and what it refuses.

Every source is a file with ``read(path, params, store) -> Source``. It normalises no text,
removes no duplicates and drops nothing: a row that cannot be used becomes a ``Reject``.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field

from stages.digest import digest
from stages.ingest.chunk import ChunkParams
from stages.ingest.dedup import DedupParams
from stages.params import Entry
from stages.records import Engine
from stages.text import canonicalise

Code = Literal[
    "json",  # not JSON
    "decode",  # not text in any encoding that it may be in
    "schema",  # a field is missing or of the wrong type
    "empty_text",  # neither title nor text
    "unreadable",  # the system does not let the file be read
    "too_long",  # more characters than max_chars
    "oversize",  # more bytes than are read of one line or file
    "id_conflict",  # this id is taken, with other content
    "html_empty",  # no main text in the page
    "html_broken",
    "timeout",  # not extracted within max_seconds
    "pdf_encrypted", "pdf_needs_ocr", "pdf_broken",
    "qrel_dangling",  # judges a query or a document that is not there
]  # fmt: skip
CODES: frozenset[str] = frozenset(get_args(Code))
RAW_BYTES = 65_536  # kept of a rejected row
JSON_META = "{}"


class Reject(NamedTuple):
    """A row that is not used: where it is, why, and its bytes."""

    locator: str
    code: Code
    detail: str
    raw: bytes
    sha256: str  # of the whole row, even where ``raw`` is only its beginning


class Raw(NamedTuple):
    """A document as the source has it."""

    docid: str
    title: str
    body: str
    locator: str
    meta: str = JSON_META  # canonical JSON
    raw: bytes = b""


class Question(NamedTuple):
    """A query, with its accepted answers and, for multiple choice, its options."""

    qid: str
    text: str
    split: str
    locator: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    meta: str = JSON_META
    raw: bytes = b""


def canonical_question(q: Question) -> tuple[Question, str]:
    """The question with canonical texts, and the hash of all that it says.

    Raises:
        BadRow: it has no text.
    """
    text = canonicalise(q.text)
    if not text:
        raise BadRow("empty_text", "a query without text")
    answers = tuple(filter(None, map(canonicalise, q.answers)))
    options = tuple(map(canonicalise, q.options))
    content = digest(text, q.split, *answers, "", *options, q.meta)
    return q._replace(text=text, answers=answers, options=options), content


class Judgement(NamedTuple):
    """How relevant a document is to a query."""

    qid: str
    docid: str
    rel: int
    locator: str
    raw: bytes = b""


class Source(NamedTuple):
    """What is read, in this order; each part once."""

    documents: Iterable[Raw | Reject]
    questions: Iterable[Question | Reject] = ()
    judgements: Iterable[Judgement | Reject] = ()
    notes: dict[str, Any] = {}  # noqa: RUF012 - facts for stats.json; a source gives its own dict


class BadRow(Exception):
    """Raised inside a reader for a row that must be set aside."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def id_conflict(key: Any) -> BadRow:
    """Of rows with one id and different contents the first is kept."""
    return BadRow("id_conflict", f"{key!r} was read before with other content")


def reject(locator: str, code: Code, detail: str, raw: bytes) -> Reject:
    """A reject that keeps the first 64 KiB of the row and the digest of all of it."""
    return Reject(locator, code, detail, raw[:RAW_BYTES], hashlib.sha256(raw).hexdigest())


class SourceParams(Entry):
    """What every source's entry may say."""

    source: str  # the file of this room that reads it
    path: str  # file or folder; data/none where a package brings the data
    chunk: ChunkParams = ChunkParams()
    dedup: DedupParams = DedupParams()
    engine: Engine = "local"  # who computes what is new: this process, or a Ray cluster
    shards: int = Field(
        1, gt=0
    )  # files of documents and of passages, by hash of the id; one: a plain file
    keep_empty: bool = False  # documents with neither title nor text stay; else empty_text
    max_chars: int = Field(1_000_000, gt=0)  # longer documents are set aside: too_long
    # Largest share of rows set aside, of documents, queries and judgements each; a value given
    # is strict, by default ten rows may always be bad.
    quarantine_max: float | None = Field(None, ge=0, le=1)


def text_field(row: dict[str, Any], name: str, *, required: bool = False) -> str:
    """The string under ``name``; "" where it may be missing or null."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if value is None and not required:
        return ""
    there = ", ".join(row) or "none"
    what = "is missing" if name not in row else f"is {type(value).__name__}"
    raise BadRow("schema", f"field '{name}' {what}, expected a string; fields there: {there}")


def id_field(row: dict[str, Any], name: str) -> str:
    """The id under ``name`` as a string; numbers keep their digits."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value == "":
        raise BadRow("schema", f"field '{name}' is empty, expected an id")
    return text_field(row, name, required=True)
