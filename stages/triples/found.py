"""What the extractors share: the facts found in one passage, and the test that they are there."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, PositiveInt

from stages.digest import uniform
from stages.params import Entry
from stages.records import Engine
from stages.shell import NONE
from stages.tables import table


def named(slot: str) -> str:
    """A slot that must name an entry."""
    if slot == NONE:
        raise ValueError("name an entry here")
    return slot


Slot = Annotated[str, AfterValidator(named)]


class Params(Entry):
    """What every entry of the room says."""

    extractor: str  # parse, llm or given
    corpus: Slot  # an ingest entry
    model: str  # a finetune entry of role generator, or "none"
    engine: Engine = "local"  # who computes what is new: this process, or a Ray cluster
    shards: PositiveInt = 1  # files of the table, by hash of the id; one: a plain file
    limit: PositiveInt | None = None  # read only the passages of smallest id hash; none: all


class Triple(NamedTuple):
    """One fact."""

    subj: str
    rel: str
    obj: str


class Found(NamedTuple):
    """What one passage gave: its facts, how many were dropped and why, a model's own words."""

    triples: list[Triple]
    rejected: dict[str, int]
    raw: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps(self, ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> "Found":
        triples, rejected, raw = json.loads(value)
        return cls([Triple(*t) for t in triples], rejected, raw)


def fold(text: str) -> str:
    """Text as it is compared: whitespace runs as one blank, case folded."""
    return " ".join(text.split()).casefold()


def is_word(char: str) -> bool:
    """Whether a character belongs to a word that blanks delimit (a cased letter, a digit)."""
    return char.isdigit() or char.lower() != char.upper()


def occurs(phrase: str, text: str) -> bool:
    """Whether ``phrase`` stands in ``text``, both folded, as whole words.

    "195" is not in "1954". Scripts without case are compared as plain substrings, since
    Chinese and its like do not put blanks between words. Nothing occurs nowhere.
    """
    at = text.find(phrase) if phrase else -1
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(phrase) : at + len(phrase) + 1]
        starts = not (before and is_word(before) and is_word(phrase[0]))
        ends = not (after and is_word(after) and is_word(phrase[-1]))
        if starts and ends:
            return True
        at = text.find(phrase, at + 1)
    return False


def keep_grounded(
    candidates: Iterable[Triple], *, title: str, text: str, rejected: Counter[str]
) -> list[Triple]:
    """Candidates whose subject and object occur in the text or title, each once, in order.

    ``rejected`` is counted up for the others. Equal but for case or blanks is a duplicate.
    """
    places = fold(text), fold(title)
    kept: dict[tuple[str, ...], Triple] = {}
    for triple in candidates:
        folded = tuple(fold(part) for part in triple)
        if not all(any(c.isalnum() for c in part) for part in folded):
            rejected["empty_field"] += 1
        elif len(set(folded)) < 3:
            rejected["repeated_field"] += 1
        elif not any(occurs(folded[0], place) for place in places):
            rejected["subject_not_in_text"] += 1
        elif not any(occurs(folded[2], place) for place in places):
            rejected["object_not_in_text"] += 1
        elif folded in kept:
            rejected["duplicate"] += 1
        else:
            kept[folded] = Triple(*(" ".join(part.split()) for part in triple))
    return list(kept.values())


def with_meta(passages: pa.Table, documents: pa.Table) -> pa.Table:
    """The passages with their documents' ``meta`` as a column more."""
    rows = pc.index_in(passages["parent"], documents["docid"].combine_chunks())
    return passages.append_column("meta", documents["meta"].take(rows))


def smallest(passages: pa.Table, limit: int | None) -> pa.Table:
    """The ``limit`` passages whose ids hash smallest, in table order; all for None.

    A sample by id hash changes by one row when the corpus does.
    """
    if limit is None or limit >= passages.num_rows:
        return passages
    docids = passages["docid"].to_pylist()
    chosen = sorted(range(len(docids)), key=lambda i: uniform(docids[i]))[:limit]
    return passages.take(sorted(chosen))


def triples_table(passages: pa.Table, found: Sequence[Found]) -> pa.Table:
    """One row per fact, numbered from 0 in its passage."""
    docids, hashes = passages["docid"].to_pylist(), passages["text_hash"].to_pylist()
    return table(
        "triples",
        [
            {"docid": docid, "seq": seq, **triple._asdict(), "text_hash": text_hash}
            for docid, text_hash, one in zip(docids, hashes, found, strict=True)
            for seq, triple in enumerate(one.triples)
        ],
    )


def count(found: Sequence[Found]) -> dict[str, object]:
    """The numbers of stats.json."""
    rejected = sum((Counter(one.rejected) for one in found), Counter[str]())
    return {
        "passages": len(found),
        "passages_without_triples": sum(not one.triples for one in found),
        "triples": sum(len(one.triples) for one in found),
        "rejected": dict(rejected),
    }
