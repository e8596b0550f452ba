"""FanOutQA: questions that fan out over many pages, with the steps that answer them.

Zhu, Hwang, Dugan & Callison-Burch, "FanOutQA: A Multi-Hop, Multi-Document Question Answering
Benchmark for Large Language Models", ACL 2024; from the package ``fanoutqa`` (development set).
310 questions, each with a tree of sub-questions. Its leaves, 2,126 of them, are answered from one
Wikipedia page. The pages are not there; the corpus is one *fact* a leaf: the page's title, and
the statement that the sub-question and its answer make (``statement``), with its lineage in
``meta``. Relevant to a question are the facts of its leaves. Answers that are lists or mappings
are flattened to strings, as the benchmark's own scorer does. A question whose form asks for yes or
no (there is one) has these as its options.

Splits are 60/20/20 by hash over *groups* of questions: two questions that share a sub-question
(27 of the 310 have such a twin) are in one group, so nothing asked in a test question, or in
``fanoutqa_leaf`` under one, was asked in training.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from stages.digest import uniform
from stages.errors import QuarryError
from stages.ingest.lines import canonical_json
from stages.ingest.source import Judgement, Question, Raw, Source, SourceParams
from stages.ingest.statement import Answer, options, phrase, state
from stages.models import package_path
from stages.records import RecordStore

FILE = "fanoutqa/data/fanout-final-dev.json"


class Params(SourceParams):
    """An entry with ``source: fanoutqa``; ``path`` is data/none (the package's file) or a file
    in its format."""


class Leaf(NamedTuple):
    """A sub-question without further steps, and the questions that need it."""

    id: str
    question: str
    answer: Answer
    page: dict[str, Any]  # title, url, revid
    parents: list[str]


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """The questions; relevant are all facts that their leaves state."""
    tops = load(path)
    leaves = find_leaves(tops)
    split = splits(tops, leaves)
    questions = [
        Question(
            top["id"], top["question"], split[top["id"]], f"{top['id']}", flatten(top["answer"]),
            options(top["question"]),
            meta=canonical_json({
                "answer_type": answer_type(top["answer"]), "categories": top["categories"],
            }),
        )
        for top in tops
    ]  # fmt: skip
    judgements = [Judgement(t, leaf.id, 1, leaf.id) for leaf in leaves for t in leaf.parents]
    return Source(facts(leaves), questions, judgements)


def load(path: Path) -> list[dict[str, Any]]:
    """The questions as they stand in the package's file, or in another one.

    Raises:
        QuarryError: it is not JSON, or a question or a step of one has another form.
    """
    file = package_path(FILE) if path.name == "none" else path
    try:
        tops = orjson.loads(file.read_bytes())
        if not isinstance(tops, list):
            raise ValueError(f"a list of questions was expected, got {type(tops).__name__}")
        for i, top in enumerate(tops):
            _check_node(top, f"question {i}")
            if not _is_texts(top.get("categories")):
                raise ValueError(f"question {i}: field 'categories' must be a list of texts")
    except (OSError, ValueError) as e:
        raise QuarryError(
            f"{file}: expected FanOutQA's JSON, a list of questions with id, question, answer and "
            f"decomposition, the list of their steps, which have the same form; {e}. "
            f"Name such a file, or data/none for the package's own."
        ) from None
    return tops


def _check_node(node: Any, where: str) -> None:
    """A question and the steps below it; ``where`` is the way to it."""
    if not isinstance(node, dict):
        raise ValueError(f"{where}: an object was expected, got {type(node).__name__}")
    if not isinstance(node.get("decomposition"), list):
        raise ValueError(f"{where}: field 'decomposition' must be a list")
    if not _is_texts([node.get("id"), node.get("question")]) or not node["id"]:
        raise ValueError(f"{where}: fields 'id' and 'question' must be texts")
    if node.get("answer") is None:
        raise ValueError(f"{where}: field 'answer' is missing")
    if not node["decomposition"]:
        page = node.get("evidence")
        title = page.get("title") if isinstance(page, dict) else None
        if not isinstance(page, dict | None) or not isinstance(title, str | None):
            raise ValueError(f"{where}: field 'evidence' must be a page with its title, or null")
    for i, child in enumerate(node["decomposition"]):
        _check_node(child, f"{where}, step {i}")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def find_leaves(tops: list[dict[str, Any]]) -> list[Leaf]:
    """The distinct leaves, by id, in the order in which they first occur."""
    found: dict[str, Leaf] = {}
    for top in tops:
        for node in _descend(top):
            evidence = node.get("evidence") or {}
            page = {k: evidence.get(k) for k in ("title", "url", "revid")}
            leaf = Leaf(node["id"], node["question"], node["answer"], page, [])
            parents = found.setdefault(leaf.id, leaf).parents
            if top["id"] not in parents:
                parents.append(top["id"])
    return list(found.values())


def _descend(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not node["decomposition"]:
        yield node
    for child in node["decomposition"]:
        yield from _descend(child)


def facts(leaves: list[Leaf]) -> list[Raw]:
    """One passage a leaf."""
    return [
        Raw(
            leaf.id, leaf.page["title"] or "", state(leaf.question, leaf.answer), leaf.id,
            canonical_json({
                "question": leaf.question, "answer": phrase(leaf.answer), "leaf": leaf.id,
                "parents": leaf.parents, "url": leaf.page["url"], "revid": leaf.page["revid"],
            }),
        )
        for leaf in leaves
    ]  # fmt: skip


def splits(tops: list[dict[str, Any]], leaves: list[Leaf]) -> dict[str, str]:
    """train, dev or test per question id; questions that share a sub-question go together."""
    root = {top["id"]: top["id"] for top in tops}

    def find(t: str) -> str:
        while root[t] != t:
            t = root[t]
        return t

    first: dict[str, str] = {}
    for leaf in leaves:
        for t in leaf.parents:
            asked = " ".join(leaf.question.lower().split()).rstrip("?. ")
            a, b = sorted((find(first.setdefault(asked, t)), find(t)))
            root[b] = a  # the smallest id names the group
    shares = {t: uniform("fanoutqa", find(t)) for t in root}
    return {t: "train" if u < 0.6 else "dev" if u < 0.8 else "test" for t, u in shares.items()}


def answer_type(answer: Answer) -> str:
    """scalar, list or dict."""
    return type(answer).__name__ if isinstance(answer, list | dict) else "scalar"


def flatten(answer: Answer) -> tuple[str, ...]:
    """Every string that an answer must hold, keys and values alike; true is yes."""
    if isinstance(answer, dict):
        return tuple(s for pair in answer.items() for part in pair for s in flatten(part))
    if isinstance(answer, list):
        return tuple(s for part in answer for s in flatten(part))
    return (phrase(answer),)
