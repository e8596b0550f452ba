"""Semanlink: bookmarked papers and pages with a comment, and the topics a person gave them.

From the package ``cherche`` (Sourty et al., SIGIR 2022); the bookmarks are F.-P. Servant's.
A document is a bookmark whose abstract, or else comment, has 200 characters or more: 1,104. A
query is a tag that 2 to 100 of them carry: 558 topics, 2,293 judgements. (One tag lies above the
hundred: ``arxiv_doc``, 314 times, which is a kind of document and no topic.) A topic's ``meta``
names its broader tags; all 6,141 such edges are in ``broader_edges``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from stages.digest import uniform
from stages.errors import QuarryError
from stages.ingest.lines import canonical_json
from stages.ingest.source import Judgement, Question, Raw, Source, SourceParams
from stages.models import package_path
from stages.records import RecordStore

MIN_CHARS = 200  # of the abstract, or of the comment where there is no abstract
MIN_DOCUMENTS, MAX_DOCUMENTS = 2, 100  # of a topic
FILES = ("docs.json", "tags.json")
DOC_TEXTS = ("document", "title", "arxiv_title", "comment", "arxiv_summary")
TAG_LISTS = ("prefLabel", "altLabel", "broader")


class Params(SourceParams):
    """An entry with ``source: semanlink``; ``path`` is data/none (the package's files) or a
    folder with docs.json and tags.json."""


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """The package's files, or those of a folder."""
    folder = package_path("cherche/data/semanlink") if path.name == "none" else path
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise QuarryError(f"{folder}: no {' and no '.join(missing)}. Name a folder that has them.")
    docs, tags = load(folder / FILES[0], _check_docs), load(folder / FILES[1], _check_tags)
    for i, d in enumerate(docs):
        if unknown := [t for t in d["tag"] if t not in tags]:
            raise QuarryError(
                f"{folder / FILES[0]}, document {i}: expected tags that {FILES[1]} has; "
                f"{unknown[0]!r} is not there. Take both files from one state of Semanlink."
            )
    return select(docs, tags)


def load(file: Path, check: Callable[[Any], None]) -> Any:
    """The JSON value of a file that has the form that ``check`` wants.

    Raises:
        QuarryError: it is not JSON, or of another form.
    """
    try:
        value = orjson.loads(file.read_bytes())
        check(value)
    except (OSError, ValueError) as e:
        raise QuarryError(
            f"{file}: expected Semanlink's JSON as in the package cherche; {e}. "
            f"Name a folder that has it, or data/none for the package's own."
        ) from None
    return value


def _check_docs(docs: Any) -> None:
    if not isinstance(docs, list):
        raise ValueError(f"a list of documents was expected, got {type(docs).__name__}")
    for i, d in enumerate(docs):
        _check_fields(d, f"document {i}", DOC_TEXTS, ("tag",))


def _check_tags(tags: Any) -> None:
    if not isinstance(tags, dict):
        raise ValueError(f"an object of tags was expected, got {type(tags).__name__}")
    for name, entry in tags.items():
        _check_fields(entry, f"tag {name!r}", (), TAG_LISTS)


def _check_fields(row: Any, where: str, texts: Sequence[str], lists: Sequence[str]) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: an object was expected, got {type(row).__name__}")
    for field in (*texts, *lists):
        value = row.get(field)
        items, what = ([value], "text") if field in texts else (value, "a list of texts")
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{where}: field '{field}' was expected to be {what}")


def select(docs: list[dict[str, Any]], tags: dict[str, dict[str, Any]]) -> Source:
    """The documents, the topics and their judgements."""
    chosen = [
        (i, d) for i, d in enumerate(docs)
        if len(d["arxiv_summary"] or d["comment"]) >= MIN_CHARS
    ]  # fmt: skip
    counts = Counter(tag for _, d in chosen for tag in dict.fromkeys(d["tag"]))
    topics = [t for t, n in counts.items() if MIN_DOCUMENTS <= n <= MAX_DOCUMENTS]
    documents = [
        Raw(
            d["document"], d["title"] or d["arxiv_title"],
            "\n\n".join(filter(None, (d["comment"], d["arxiv_summary"]))),
            f"docs.json:{i}", canonical_json({"tags": [short(t) for t in d["tag"]]}),
        )
        for i, d in chosen
    ]  # fmt: skip
    questions = [
        Question(
            short(t), label(t, tags[t]), split(short(t)), f"tags.json:{short(t)}",
            meta=canonical_json({"broader": [short(b) for b in tags[t]["broader"]]}),
        )
        for t in topics
    ]  # fmt: skip
    wanted = set(topics)
    judgements = [
        Judgement(short(t), d["document"], 1, f"docs.json:{i}")
        for i, d in chosen
        for t in dict.fromkeys(d["tag"])
        if t in wanted
    ]
    return Source(documents, questions, judgements)


def short(tag: str) -> str:
    """The last part of a tag's address: its name in the tag tree."""
    return tag.rstrip("/").rpartition("/")[2]


def label(tag: str, entry: dict[str, Any]) -> str:
    """What a person would type for this tag."""
    return next(filter(None, entry["prefLabel"] + entry["altLabel"]), short(tag).replace("_", " "))


def split(qid: str) -> str:
    """train, dev or test (60/20/20), by the topic's id alone."""
    u = uniform("semanlink", qid)
    return "train" if u < 0.6 else "dev" if u < 0.8 else "test"


def broader_edges(tags: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(tag, broader tag) for all tags."""
    return [(short(t), short(b)) for t, entry in tags.items() for b in entry["broader"]]
