"""Questions that bring their passages, one JSON object a line: id, question, answers, passages.

A passage has ``title``, ``text`` and ``is_supporting``. The passages of all questions are pooled
into one corpus, each once; a question's judgements are its supporting passages. HotpotQA's
distractor setting (Yang et al., EMNLP 2018), 2WikiMultihopQA and MuSiQue come in this shape.

Passages have no ids: theirs is the hash of title and text. Where they are the sections of one text
(PubMedQA's abstracts), ``joined`` makes a document of them. Questions may have no passages and no
answers, and may have ``options``, as a list or by letter (MedQA); without them they have the
entry's, and where it says none a question whose form asks for yes or no, in English, has these.
The split is in the file's name: train*, dev*, test*; other
files are test. A bad line is a question set aside, with all its passages and
judgements; so is one without text, or with the id of an earlier question that says otherwise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from stages.digest import digest
from stages.errors import QuarryError
from stages.ingest.lines import canonical_json, parse_object, read_rows, strings
from stages.ingest.source import (
    BadRow,
    Judgement,
    Question,
    Raw,
    Reject,
    Source,
    SourceParams,
    canonical_question,
    id_conflict,
    id_field,
    reject,
    text_field,
)  # fmt: skip
from stages.ingest.statement import options
from stages.records import RecordStore
from stages.text import canonicalise

_FIELDS = {"id", "question", "answers", "passages", "options"}


class Params(SourceParams):
    """An entry with ``source: multihop``; ``path`` is a .jsonl file or a folder of them."""

    max_line_bytes: int = Field(4_194_304, gt=0)  # longer lines are set aside: oversize
    options: list[str] = Field([])  # of every question without its own: [yes, no, maybe]
    joined: bool = False  # a question's passages are the sections of one document


class Row(NamedTuple):
    """What one line says."""

    question: Question
    passages: list[Raw]
    judgements: list[Judgement]


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """One file, or all .jsonl files of a folder in the order of their names."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise QuarryError(f"{path}: no .jsonl file in this folder. Name the folder that has them.")
    questions: list[Question | Reject] = []
    judgements: list[Judgement] = []

    seen: dict[str, str] = {}  # question -> hash of what it says

    def admit(row: Row) -> Row | Reject:
        """The row, unless its question is one that ``corpus.read_queries`` would refuse."""
        q = row.question
        try:
            _, content = canonical_question(q)
            if seen.setdefault(q.qid, content) != content:
                raise id_conflict(q.qid)
        except BadRow as e:
            return reject(q.locator, e.code, e.detail, q.raw)
        return row

    def documents() -> Iterator[Raw]:
        for file in files:
            split = next((s for s in ("train", "dev") if file.stem.startswith(s)), "test")
            rows = read_rows(
                file, lambda line, at, split=split: parse_row(line, at, split, params),
                name=file.name,
                expected="one JSON object a line with 'id', 'question', 'answers', 'passages'",
                max_line_bytes=params.max_line_bytes,
            )  # fmt: skip
            for row in rows:
                if isinstance(row, Row):
                    row = admit(row)
                if isinstance(row, Reject):
                    questions.append(row)
                    continue
                questions.append(row.question)
                judgements.extend(row.judgements)
                yield from row.passages

    return Source(documents(), questions, judgements)  # the lists fill as documents are read


def parse_row(line: bytes, locator: str, split: str, params: Params) -> Row:
    """One line as a question with its passages and judgements."""
    row = parse_object(line)
    qid, text = id_field(row, "id"), text_field(row, "question", required=True)
    rest = canonical_json({k: v for k, v in row.items() if k not in _FIELDS})
    passages, judgements = [], []
    for passage in _joined(_passages(row)) if params.joined else _passages(row):
        title, body = text_field(passage, "title"), text_field(passage, "text", required=True)
        docid = digest(canonicalise(title), canonicalise(body))
        passages.append(Raw(docid, title, body, locator, raw=line))
        if passage.get("is_supporting"):
            judgements.append(Judgement(qid, docid, 1, locator, line))
    answers = strings(row, "answers")
    choices = strings(row, "options") or tuple(params.options) or options(text)
    question = Question(qid, text, split, locator, answers, choices, rest, line)
    return Row(question, passages, judgements)


def _passages(row: dict[str, Any]) -> list[dict[str, Any]]:
    value = row.get("passages") or []
    if not isinstance(value, list) or not all(isinstance(p, dict) for p in value):
        raise BadRow("schema", "field 'passages' must be a list of objects with title and text")
    return value


def _joined(sections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One passage of all, each section after its title; supporting if one of them is."""
    titles = [text_field(section, "title") for section in sections]
    texts = [text_field(section, "text", required=True) for section in sections]
    named = [
        f"{title}: {text}" if title else text for title, text in zip(titles, texts, strict=True)
    ]
    supports = any(section.get("is_supporting") for section in sections)
    return [{"title": "", "text": "\n".join(named), "is_supporting": supports}] if named else []
