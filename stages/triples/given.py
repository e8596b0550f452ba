"""Facts that the corpus itself brings: ``meta`` of a document is {"triples": [[subj, rel, obj]]}.

A made world knows its facts (ingest source ``world``), and some published corpora come with
theirs. Nothing is read out of text, so what is measured behind it does not depend on an extractor.
A document's facts go to those of its passages that hold subject and object, as everywhere in this
room; a document of one passage has all of them there, or the counts say what is not.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from stages.errors import QuarryError
from stages.records import RecordStore
from stages.triples import found
from stages.triples.found import Found, Triple, keep_grounded


class Params(found.Params):
    """The corpus brings its facts; no model slot."""

    extractor: Literal["given"]
    model: Literal["none"]


def extract(
    passages: pa.Table, params: Params, *, model: Path | None, store: RecordStore
) -> list[Found]:
    """The facts of each passage, in the table's order, from its document's ``meta``.

    Raises:
        QuarryError: no document brings facts, or one brings something else under ``triples``.
    """
    rows = passages.select(["docid", "title", "text", "meta"]).to_pylist()
    given = [read_given(row["meta"], row["docid"]) for row in rows]
    if rows and all(facts is None for facts in given):
        raise QuarryError(
            f"triples: no document of corpus '{params.corpus}' has 'triples' in its meta. Name a "
            f"corpus that brings its facts, for example one of source world, or take extractor "
            f"parse."
        )
    return [
        ground(facts or [], title=row["title"], text=row["text"])
        for row, facts in zip(rows, given, strict=True)
    ]


def ground(facts: list[Triple], *, title: str, text: str) -> Found:
    """Those facts that stand in this passage, and counts of the others by reason."""
    rejected: Counter[str] = Counter()
    kept = keep_grounded(facts, title=title, text=text, rejected=rejected)
    return Found(kept, dict(rejected))


def read_given(meta: str, docid: str) -> list[Triple] | None:
    """The facts in a document's meta; None if it does not say any.

    Raises:
        QuarryError: what it says is not a list of three texts each, naming the passage.
    """
    facts: Any = json.loads(meta).get("triples")
    if facts is None:
        return None
    if not isinstance(facts, list) or not all(map(_is_triple, facts)):
        raise QuarryError(
            f"triples: the meta of passage {docid}'s document has 'triples' that are no list of "
            f"[subject, relation, object], three texts: {facts!r:.120}. Correct the corpus."
        )
    return [Triple(*fact) for fact in facts]


def _is_triple(fact: Any) -> bool:
    return isinstance(fact, list) and len(fact) == 3 and all(isinstance(part, str) for part in fact)
