"""Rows for contrastive training: a query, a relevant document, and documents that are not.

Nothing judged relevant is ever a negative: not among the mined documents, and not inside a
batch, where every document of another row is a negative too. Draws are by hash of the ids: one
more query or document changes few of them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from stages.digest import digest
from stages.runs import parent, search_documents
from stages.types import Retriever

Relevant = Mapping[str, Mapping[str, int]]  # qid -> docid -> grade, above 0


class Row(NamedTuple):
    """One query with a relevant document and hard negatives."""

    qid: str
    positive: str  # docid
    negatives: tuple[str, ...]  # docids

    @property
    def docids(self) -> tuple[str, ...]:
        return (self.positive, *self.negatives)


def judged(qrels: pa.Table) -> dict[str, dict[str, int]]:
    """Relevant documents by query, with their grade; a grade of 0 or less is not relevant."""
    found: dict[str, dict[str, int]] = {}
    for row in qrels.to_pylist():
        if row["rel"] > 0:
            found.setdefault(row["qid"], {})[row["docid"]] = row["rel"]
    return found


def document_texts(passages: pa.Table) -> dict[str, str]:
    """The first passage of each document as it is indexed: title and text, a blank between."""
    texts: dict[str, str] = {}
    for row in passages.select(["docid", "title", "text"]).to_pylist():
        texts.setdefault(parent(row["docid"]), indexed_text(row["title"], row["text"]))
    return texts


def indexed_text(title: str, text: str) -> str:
    """A passage as the indexes read it."""
    return f"{title} {text}" if title else text


def split_of(queries: pa.Table, split: str, relevant: Relevant) -> dict[str, str]:
    """Text by qid, of the queries of a split that something is relevant to; by qid."""
    rows = queries.select(["qid", "text", "split"]).to_pylist()
    return {r["qid"]: r["text"] for r in rows if r["split"] == split and r["qid"] in relevant}


def mine(
    questions: Mapping[str, str],
    relevant: Relevant,
    texts: Mapping[str, str],
    index: Retriever,
    *,
    skip: int,
    depth: int,
) -> dict[str, list[str]]:
    """Documents that the index ranks from skip + 1 to depth for each query, none relevant.

    A document with the very text of a relevant one is not a negative either.
    """
    hits = search_documents(index, list(questions.values()), depth)
    mined = {}
    for qid, found in zip(questions, hits, strict=True):
        good = {texts.get(docid) for docid in relevant[qid]}
        mined[qid] = [hit.docid for hit in found[skip:] if texts[hit.docid] not in good]
    return mined


def make_rows(
    relevant: Relevant,
    mined: Mapping[str, Sequence[str]],
    texts: Mapping[str, str],
    *,
    n: int,
    seed: int,
) -> list[Row]:
    """One row per mined-for query and relevant document, with n negatives drawn by hash.

    Where fewer than n were mined, documents of the corpus fill up; a row for which even they
    are not enough is left out.
    """
    corpus = sorted(texts, key=lambda d: digest("fill", str(seed), d))
    rows = []
    for qid in sorted(mined):
        good = {texts.get(docid) for docid in relevant[qid]}
        for positive in sorted(relevant[qid].keys() & texts.keys()):
            drawn = sorted(mined[qid], key=lambda d: digest(str(seed), qid, positive, d))[:n]
            rest = (d for d in corpus if d not in drawn and texts[d] not in good)
            negatives = (*drawn, *itertools.islice(rest, n - len(drawn)))
            if len(negatives) == n:
                rows.append(Row(qid, positive, negatives))
    return rows


def take_batches(
    rows: Sequence[Row],
    relevant: Relevant,
    size: int,
    steps: int,
    *,
    seed: int,
) -> Iterator[list[Row]]:
    """``steps`` batches of up to ``size`` rows that are no false negatives of one another.

    Rows come epoch by epoch, each in its own order by hash. One that does not go with the
    batch waits for the next; after as many refusals as there are rows, a batch stays smaller.
    """
    stream = _epochs(rows, seed)
    waiting: list[Row] = []
    for _ in range(steps):
        batch: list[Row] = []
        refused: list[Row] = []
        source = itertools.chain(waiting, stream)
        while len(batch) < size and len(refused) < len(rows):
            row = next(source)
            fits = all(_apart(row, other, relevant) for other in batch)
            (batch if fits else refused).append(row)
        waiting = [*refused, *waiting[len(batch) + len(refused) :]]
        yield batch


def _epochs(rows: Sequence[Row], seed: int) -> Iterator[Row]:
    for epoch in itertools.count():
        yield from sorted(rows, key=lambda r: digest(str(seed), str(epoch), r.qid, r.positive))


def _apart(a: Row, b: Row, relevant: Relevant) -> bool:
    """Whether no document of either row is relevant to the other's query."""
    return relevant[a.qid].keys().isdisjoint(b.docids) and relevant[b.qid].keys().isdisjoint(
        a.docids
    )
