"""The facts of a corpus with their vectors: what KiRAG ranks in the place of passages.

Fang, Meng & Macdonald, KiRAG, ACL 2025. Its aligner is frozen when it serves, so the vectors of
the triples belong into an index (ours; the released code encodes them again in every round): a
round then costs one query's encoding, a look-up and a small matrix product.

A fact is a triple "<subject; relation; object>", without the title of its passage, in training as
in serving. ``unit`` makes it a sentence, or the whole passage: the paper's ablation. Facts lie
passage by passage, passages by docid descending, so that ties by row are ties by docid.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from stages.chains import triple_text
from stages.encoder import open_encoder
from stages.errors import QuarryError
from stages.index import Inputs
from stages.index.embedding import embed_texts
from stages.index.layout import Contents, Index, KindParams, Slot, rows
from stages.shell import NONE
from stages.tables import read_table
from stages.text import split_sentences

Unit = Literal["triple", "sentence", "document"]
Rows = npt.NDArray[np.int64]
Triple = tuple[str, str, str]  # subject, relation, object
DTYPES = {"f32": "<f4", "f16": "<f2"}
BLOCK = 65_536  # rows that are scored at once


class Params(KindParams):
    """An entry of kind facts."""

    kind: Literal["facts"]
    corpus: Slot  # an entry of ingest
    model: Slot  # an entry of finetune: a dense encoder, the aligner or what it is trained from
    centroids: Literal["none"]
    triples: str = NONE  # an entry of triples, over the same corpus
    unit: Unit = "triple"  # what a fact is
    # f16 halves the vectors. A component is off by at most 2^-11 of itself, so the product of
    # two unit vectors by at most 2^-11 = 4.9e-4 (Cauchy-Schwarz), and what rounds to 0 by 1e-6.
    dtype: Literal["f32", "f16"] = "f32"
    max_tokens: int = Field(64, ge=8)  # of a fact; as in training
    threads: int = Field(1, ge=1)  # of the encoder

    @model_validator(mode="after")
    def _names_what_it_needs(self) -> "Params":
        if (self.unit == "triple") == (self.triples == NONE):
            wanted = "an entry of triples" if self.unit == "triple" else "triples: none"
            raise ValueError(f"unit: {self.unit} needs {wanted}")
        return self


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The facts of each passage, and their vectors; a passage without facts has its empty span."""
    docids, texts, _ = rows(passages)
    fields: list[Triple] = []
    if params.unit == "triple":
        of_doc = read_triples(inputs.triples, docids)
        fields = [fact for facts in of_doc for fact in facts]
        facts = [[triple_text(*fact) for fact in facts] for facts in of_doc]
    elif params.unit == "sentence":
        facts = [sentences(*p) for p in _titles_and_texts(passages, docids)]
    else:
        facts = [[text] if text.strip() else [] for text in texts]
    owners = [docid for docid, own in zip(docids, facts, strict=True) for _ in own]
    made = embed_texts(
        owners, [text for own in facts for text in own], inputs, "dense",
        max_tokens=params.max_tokens, threads=params.threads,
    )  # fmt: skip
    settings = {"unit": params.unit, "dtype": params.dtype}
    lists, arrays = lay_out(facts, fields, made.vectors, params.dtype)
    counts = {
        "passages": len(docids), "facts": len(owners),
        "passages_without_facts": sum(not own for own in facts),
    }  # fmt: skip
    return Contents(docids, arrays, lists, settings, made.encoder, made.facts | counts)


def lay_out(
    facts: Sequence[Sequence[str]], fields: Sequence[Triple], vectors: npt.NDArray[np.float32],
    dtype: str = "f32",
) -> tuple[dict[str, list[str]], dict[str, npt.NDArray]]:  # fmt: skip
    """Lists and arrays of the index, from the facts of each passage.

    ``doc_ptr`` (passages + 1,): the facts of passage i are rows doc_ptr[i] to doc_ptr[i + 1].
    ``vectors`` (facts, d). subj, rel and obj are empty where a fact is no triple.
    """
    lists = {"texts": [text for own in facts for text in own]}
    lists |= {n: [f[i] for f in fields] for i, n in enumerate(("subj", "rel", "obj"))}
    ends = np.cumsum([0, *map(len, facts)], dtype=np.int64)
    return lists, {"doc_ptr": ends, "vectors": vectors.astype(DTYPES[dtype])}


def read_triples(folder: Path, docids: Sequence[str]) -> list[list[Triple]]:
    """The triples of each passage, in the table's order.

    Raises:
        QuarryError: a triple's passage is not there: the table was read from another corpus.
    """
    found: dict[str, list[Triple]] = {docid: [] for docid in docids}
    table = read_table(folder, "triples")
    columns = [table[name].to_pylist() for name in ("docid", "subj", "rel", "obj")]
    for docid, *fact in zip(*columns, strict=True):
        if docid not in found:
            raise QuarryError(
                f"{folder}: triples of passage {docid!r}, which the corpus has not. Name triples "
                f"that were read from this corpus, or read them again: dvc repro."
            )
        found[docid].append(tuple(fact))
    return list(found.values())


def sentences(title: str, text: str) -> list[str]:
    """The sentences of a passage, each with its title: it says whom "he" means (ours)."""
    cut = [" ".join(text[start:end].split()) for start, end in split_sentences(text)]
    return [f"{title}: {sentence}" if title else sentence for sentence in cut]


def _titles_and_texts(passages: pa.Table, docids: Sequence[str]) -> list[tuple[str, str]]:
    columns = [passages[name].to_pylist() for name in ("docid", "title", "text")]
    of_doc = {docid: (title, text) for docid, title, text in zip(*columns, strict=True)}
    return [of_doc[docid] for docid in docids]


class Facts:
    """An opened index of kind facts. A fact is its row; ``vecs`` (n, d) is memory-mapped."""

    def __init__(self, index: Index) -> None:
        self.fingerprint = index.fingerprint
        self.unit: Unit = index.settings["unit"]
        self.texts = index.lists["texts"]
        self.vecs = index.arrays["vectors"]
        self._name, self._fields = index.path.name, [index.lists[n] for n in ("subj", "rel", "obj")]
        self._docids = index.docids
        self._place = {docid: i for i, docid in enumerate(index.docids)}
        self._ends = np.asarray(index.arrays["doc_ptr"])

    def of(self, docids: Sequence[str]) -> Rows:
        """The rows of these passages' facts, passage by passage in the order given.

        Raises:
            QuarryError: a passage is not there: the index was built from another corpus.
        """
        try:
            places = [self._place[docid] for docid in docids]
        except KeyError as unknown:
            raise QuarryError(
                f"index '{self._name}' has no passage {unknown}: it was built from another "
                f"corpus. Name the facts of the corpus that is searched."
            ) from None
        spans = [np.arange(self._ends[i], self._ends[i + 1]) for i in places]
        return np.concatenate([np.empty(0, np.int64), *spans])

    def docids(self, rows: Sequence[int]) -> list[str]:
        """The passage of each row."""
        places = np.searchsorted(self._ends, np.asarray(rows, np.int64), side="right") - 1
        return [self._docids[i] for i in places]

    def triple(self, row: int) -> Triple:
        """Subject, relation and object of a row, where facts are triples."""
        subj, rel, obj = self._fields
        return subj[row], rel[row], obj[row]

    def best(
        self, query: npt.NDArray[np.float32], n: int, rows: Rows | None = None
    ) -> tuple[Rows, npt.NDArray[np.float32]]:
        """(rows, cosines) of the n facts nearest to a unit query vector (d,), best first.

        Among ``rows``, or among all. Ties by row. All: float32 proposes, and what its error could
        have kept out is scored with the rest (22,658 facts, one thread: 66 ms → 8 ms).
        """
        if rows is None:
            rows = self._propose(query, n)
        scores = self.score(query, rows)
        order = np.lexsort((rows, -scores))[:n]
        return rows[order], scores[order]

    def _propose(self, query: npt.NDArray[np.float32], n: int) -> Rows:
        """The rows that may be among the n best: in float32, less twice the error's bound."""
        blocks = range(0, len(self.vecs), BLOCK)
        near = [self.vecs[at : at + BLOCK].astype(np.float32, copy=False) @ query for at in blocks]
        scores = np.concatenate([np.empty(0, np.float32), *near])
        if n >= len(scores):
            return np.arange(len(scores))
        least = np.partition(scores, -n)[-n] - 2 * 2 * len(query) * 2.0**-24
        return np.flatnonzero(scores >= least)

    def score(self, query: npt.NDArray[np.float32], rows: Rows) -> npt.NDArray[np.float32]:
        """(n,) cosines of a unit query vector (d,) with the facts in these rows.

        Products are summed in float64: a score depends on its two vectors alone.
        """
        scores = np.empty(len(rows), np.float32)
        for at in range(0, len(rows), BLOCK):
            part = self.vecs[rows[at : at + BLOCK]].astype(np.float64)
            scores[at : at + BLOCK] = part @ query.astype(np.float64)
        return scores


def retriever(index: Index, encoder: Path | None) -> Facts:
    """The facts; ``encoder`` is the model that made their vectors (a scorer, in serve).

    Raises:
        QuarryError: none was given, or another.
    """
    made = index.encoder
    if encoder is None:
        raise QuarryError(
            f"index '{index.path.name}' holds facts with vectors of {made['name']} "
            f"(d={made['dim']}) and no encoder was given. Say scorer: {made['name']} in the entry "
            f"that uses them."
        )
    given = open_encoder(encoder, "dense", max_tokens=made["max_tokens"], threads=made["threads"])
    if given.fingerprint != made["fingerprint"]:
        raise QuarryError(
            f"index '{index.path.name}' holds facts with vectors of {made['name']} "
            f"(d={made['dim']}); the scorer is {given.name} (d={given.dim}, other fingerprint). "
            f"Rebuild with dvc repro index@{index.path.name}."
        )
    return Facts(index)
