"""Semanlink: bookmarked papers and pages with a comment, and the topics a person gave them.

From the package ``cherche`` (Sourty et al., SIGIR 2022); the bookmarks are F.-P. Servant's.
A document is a bookmark whose abstract, or else comment, has 200 characters or more: 1,104. A
query is a tag that 2 to 100 of them carry: 558 topics, 2,293 judgements. (One tag lies above the
hundred: ``arxiv_doc``, 314 times, which is a kind of document and no topic.) A topic's ``meta``
names its broader tags; all 6,141 such edges are in ``broader_edges``.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from stages.digest import uniform
from stages.errors import QuarryError
from stages.ingest.lines import canonical_json
from stages.ingest.source import Judgement, Question, Raw, Source, SourceParams
from stages.models import package_path
from stages.records import RecordStore

MIN_CHARS = 200  # of the abstract, or of the comment where there is no abstract
MIN_DOCUMENTS, MAX_DOCUMENTS = 2, 100  # of a topic
FILES = ("docs.json", "tags.json")


class Params(SourceParams):
    """An entry with ``source: semanlink``; ``path`` is data/none (the package's files) or a
    folder with docs.json and tags.json."""


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """The package's files, or those of a folder."""
    folder = package_path("cherche/data/semanlink") if path.name == "none" else path
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise QuarryError(f"{folder}: no {' and no '.join(missing)}. Name a folder that has them.")
    docs, tags = (json.loads((folder / name).read_text(encoding="utf-8")) for name in FILES)
    return select(docs, tags)


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
