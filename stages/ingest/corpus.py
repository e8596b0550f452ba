"""The five tables of a corpus, from whatever a source yields.

Every row read is a row kept, a repeat of one kept (same id, same content) or a row in
quarantine with its reason; the counts are asserted and written down. What a document costs,
its passages and its signature, is computed once per content and kept in the record store.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from stages.digest import digest
from stages.errors import QuarryError
from stages.ingest import chunk, dedup
from stages.ingest.overlap import Asked
from stages.ingest.source import (
    BadRow,
    Judgement,
    Question,
    Raw,
    Reject,
    Source,
    canonical_question,
    id_conflict,
    reject,
)  # fmt: skip
from stages.records import RecordStore
from stages.tables import TABLES, empty_table
from stages.text import VERSION, Span, canonicalise

FREE_ROWS = 10  # may be bad however few were read, unless the entry says otherwise
SHARE = 0.01  # of the rows read may be bad, unless the entry says otherwise
BLOCK = 65_536  # rows that wait as Python objects before they become Arrow
BATCH = 256  # documents hashed at once; the arrays of so many stay in the processor's cache

SAID = {"mark": "marked", "drop": "dropped (dedup.mode mark keeps them)"}

log = logging.getLogger(__name__)

R = TypeVar("R", Raw, Question, Judgement)


class Corpus(NamedTuple):
    """Tables by kind, and what happened to the rows."""

    tables: dict[str, pa.Table]
    stats: dict[str, Any]


class Tally:
    """What became of the rows of one part of a source."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.read = self.kept = self.repeated = 0
        self.rejects: list[Reject] = []
        self._content: dict[Any, str] = {}

    def sift(
        self, rows: Iterable[R | Reject], prepare: Callable[[R], tuple[Any, str, R]]
    ) -> Iterator[tuple[R, str]]:
        """Usable rows with the hash of their content, each id once; the rest is counted.

        ``prepare`` gives id, content and the canonical row, or raises BadRow. Of rows with one
        id and different contents the first is kept.
        """
        for row in rows:
            self.read += 1
            if isinstance(row, Reject):
                self.rejects.append(row)
                continue
            try:
                key, content, row = prepare(row)
                before = self._content.setdefault(key, content)
                if before is not content and before != content:
                    raise id_conflict(key)
            except BadRow as e:
                self.rejects.append(reject(row.locator, e.code, e.detail, row.raw))
                continue
            if before is not content:
                self.repeated += 1
                continue
            self.kept += 1
            yield row, content

    def stats(self) -> dict[str, Any]:
        """Counts, by reason where rows were set aside."""
        assert self.read == self.kept + self.repeated + len(self.rejects), vars(self)
        return {
            "read": self.read,
            "kept": self.kept,
            "repeated": self.repeated,
            "quarantined": dict(sorted(Counter(r.code for r in self.rejects).items())),
        }

    def check_budget(self, where: str, quarantine_max: float | None) -> None:
        """Too many bad rows mean that the source is not what the entry says.

        Raises:
            QuarryError: more than ``quarantine_max`` of the rows read (None: 1 %, or ten rows).
        """
        bad = len(self.rejects)
        share = SHARE if quarantine_max is None else quarantine_max
        if bad <= max(share * self.read, FREE_ROWS if quarantine_max is None else 0):
            return
        reasons = ", ".join(f"{code} {n}" for code, n in self.stats()["quarantined"].items())
        first = self.rejects[0]
        raise QuarryError(
            f"{where}: {bad} of {self.read} {self.part} cannot be used, at most {share:.2%} may: "
            f"{reasons}. The first is {first.locator} ({first.code}: {first.detail}). "
            f"Repair the source, or raise quarantine_max of this entry in params.yaml."
        )


def build_corpus(
    source: Source,
    *,
    where: str,
    chunking: dict[str, Any],
    deduping: dict[str, Any],
    max_chars: int,
    keep_empty: bool,
    quarantine_max: float | None,
    store: RecordStore,
) -> Corpus:
    """Read a source to its end; ``where`` names it in errors.

    ``chunking`` are the arguments of ``chunk.split_passages``, ``deduping`` the fields of
    ``dedup.DedupParams``.

    Raises:
        QuarryError: too many rows had to be set aside, see ``Tally.check_budget``.
    """
    tallies = {part: Tally(part) for part in ("documents", "queries", "judgements")}
    documents = read_documents(source.documents, tallies["documents"], max_chars, keep_empty)
    tallies["documents"].check_budget(where, quarantine_max)
    spans, bands = derive(documents, chunking, deduping, store)
    documents = mark_duplicates(documents, bands, deduping)
    keep = documents
    if deduping["mode"] == "drop":
        own = pc.equal(documents["dup_of"], "")
        keep = documents.filter(own)
        spans = spans and [s for s, mine in zip(spans, own.to_pylist(), strict=True) if mine]
    passages = make_passages(keep, spans)

    queries = read_queries(source.questions, tallies["queries"])
    qrels = read_judgements(
        source.judgements, tallies["judgements"], documents, queries,
        follow=deduping["mode"] == "drop",
    )  # fmt: skip
    for tally in tallies.values():
        tally.check_budget(where, quarantine_max)
    rejects = list(chain.from_iterable(t.rejects for t in tallies.values()))
    tables = {
        "documents": documents, "passages": passages, "queries": queries, "qrels": qrels,
        "quarantine": quarantine_table(rejects),
    }  # fmt: skip
    stats = {part: tally.stats() for part, tally in tallies.items()}
    near = stats["documents"]["duplicates"] = (
        pc.sum(pc.not_equal(documents["dup_of"], "")).as_py() or 0
    )
    log.info(
        "%d documents and %d questions read, %d rows set aside (quarantine.parquet)%s",
        tallies["documents"].read, tallies["queries"].read, len(rejects),
        f"; {near} near-duplicates {SAID[deduping['mode']]}" if near else "",
    )  # fmt: skip
    if not documents.num_rows:
        log.warning(
            "%s: there is no document in it, so all that is made from it will be empty. Look at "
            "path in this entry of params.yaml.", where,
        )  # fmt: skip
    stats["passages"] = {"made": passages.num_rows}
    stats["queries"]["splits"] = dict(sorted(Counter(queries["split"].to_pylist()).items()))
    asked = Asked(queries, qrels, documents["docid"], compared_texts(documents))
    stats["question_passage_overlap"] = asked.words_in_common()
    stats["contamination"] = asked.test_questions_seen()
    return Corpus(tables, stats | source.notes)


# -- documents -----------------------------------------------------------------------------------


def read_documents(
    rows: Iterable[Raw | Reject], tally: Tally, max_chars: int, keep_empty: bool
) -> pa.Table:
    """The documents table in source order, canonical, ``dup_of`` still empty."""

    def prepare(raw: Raw) -> tuple[str, str, Raw]:
        title, text = canonicalise(raw.title), canonicalise(raw.body)
        if not title and not text and not keep_empty:
            raise BadRow("empty_text", "neither title nor text")
        if len(text) > max_chars:
            raise BadRow("too_long", f"{len(text)} characters, max_chars is {max_chars}")
        content = digest("doc", VERSION, title, text)
        return raw.docid, content, raw._replace(title=title, body=text)

    schema = TABLES["documents"].schema
    blocks: list[pa.RecordBatch] = []
    block: list[tuple[str, ...]] = []

    def flush() -> None:
        columns = zip(*block, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        blocks.append(pa.record_batch(arrays, schema=schema))
        block.clear()

    progress = tqdm(rows, unit="row", desc="reading", disable=None, delay=2)
    for raw, content in tally.sift(progress, prepare):
        block.append((raw.docid, raw.title, raw.body, content, "", raw.locator, raw.meta))
        if len(block) == BLOCK:
            flush()
    if block:
        flush()
    return pa.Table.from_batches(blocks, schema=schema)


def derive(
    documents: pa.Table, chunking: dict[str, Any], deduping: dict[str, Any], store: RecordStore
) -> tuple[list[list[Span]] | None, dedup.U64 | None]:
    """Per document: where its passages are (None: it is one), its bands (None: not wanted).

    One record a document, keyed by content and parameters: its bands, then its spans.
    """
    chunked, signed = chunking["mode"] != "none", deduping["mode"] != "off"
    if not chunked and not signed:
        return None, None
    lsh = {k: deduping[k] for k in ("ngram", "r", "b")}
    width = 8 * lsh["b"] if signed else 0
    how = digest("ingest", dedup.VERSION, chunk.VERSION, repr((chunking, signed and lsh)))
    rows = Rows(compared_texts(documents), documents["text"])

    def compute(rows: list[tuple[str, str]]) -> list[bytes]:
        bands = [b""] * len(rows)
        spans = list(bands)
        if signed:
            hashes = dedup.band_hashes([compared for compared, _ in rows], **lsh)
            bands = [row.astype("<u8").tobytes() for row in hashes]
        if chunked:
            cut = (chunk.split_passages(text, **chunking) for _, text in rows)
            spans = [np.array(s, dtype="<i4").tobytes() for s in cut]
        return [b + s for b, s in zip(bands, spans, strict=True)]

    keys = [h + how for h in documents["content_hash"].to_pylist()]
    values = store.compute(keys, rows, compute, batch=BATCH, unit="document")
    spans = bands = None
    if signed:
        bands = np.frombuffer(b"".join(v[:width] for v in values), dtype="<u8")
        bands = bands.reshape(len(keys), lsh["b"])
    if chunked:
        spans = [np.frombuffer(v, "<i4", offset=width).reshape(-1, 2).tolist() for v in values]
    return spans, bands


class Rows(Sequence[tuple[str, ...]]):
    """Columns as a sequence of rows, each made when it is asked for."""

    def __init__(self, *columns: pa.ChunkedArray) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, i: int) -> tuple[str, ...]:
        return tuple(column[i].as_py() for column in self.columns)


def compared_texts(documents: pa.Table) -> pa.ChunkedArray:
    """What is compared of a document: its title and its text."""
    return pc.binary_join_element_wise(
        documents["title"], documents["text"], pa.scalar("\n", pa.large_string())
    )


def mark_duplicates(
    documents: pa.Table, bands: dedup.U64 | None, deduping: dict[str, Any]
) -> pa.Table:
    """``documents`` with ``dup_of``."""
    if bands is None or not documents.num_rows:
        return documents
    compared = compared_texts(documents)
    dup_of = dedup.find_duplicates(
        documents["docid"].to_pylist(),
        pc.utf8_length(documents["text"]).to_pylist(),
        documents["content_hash"].to_pylist(),
        bands,
        lambda rows: compared.take(rows).to_pylist(),
        ngram=deduping["ngram"],
        least=deduping["jaccard"],
    )
    at = documents.schema.get_field_index("dup_of")
    return documents.set_column(at, documents.schema.field(at), [pa.array(dup_of, pa.string())])


def make_passages(documents: pa.Table, spans: Sequence[Sequence[Span]] | None) -> pa.Table:
    """The passages of these documents; without spans each document is one."""
    schema = TABLES["passages"].schema
    titles, texts = documents["title"].to_pylist(), documents["text"].to_pylist()
    if spans is None:
        spans = [[(0, len(text))] for text in texts]
    counts = np.array([len(s) for s in spans], dtype=np.int64)
    parent = np.repeat(np.arange(len(counts)), counts)
    seq = (np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.int32)
    flat = np.array(list(chain.from_iterable(spans)), dtype=np.int32).reshape(-1, 2)
    cut = [texts[d][a:b] for d, (a, b) in zip(parent.tolist(), flat.tolist(), strict=True)]
    parents = documents["docid"].combine_chunks().take(pa.array(parent))
    columns = [
        pc.binary_join_element_wise(parents, pa.array(seq).cast(pa.string()), "#"),
        parents,
        pa.array(seq),
        documents["title"].combine_chunks().take(pa.array(parent)),
        pa.array(cut, pa.large_string()),
        pa.array(flat[:, 0]),
        pa.array(flat[:, 1]),
        pa.array([digest(titles[d], t) for d, t in zip(parent.tolist(), cut, strict=True)]),
    ]
    return pa.table(columns, names=schema.names).cast(schema)


# -- queries and judgements ----------------------------------------------------------------------


def read_queries(rows: Iterable[Question | Reject], tally: Tally) -> pa.Table:
    """The queries table; texts, answers and options canonical."""

    def prepare(q: Question) -> tuple[str, str, Question]:
        q, content = canonical_question(q)
        return q.qid, content, q

    kept = [
        (q.qid, q.text, q.split, q.answers, q.options, q.meta) for q, _ in tally.sift(rows, prepare)
    ]
    return _table("queries", kept)


def read_judgements(
    rows: Iterable[Judgement | Reject],
    tally: Tally,
    documents: pa.Table,
    queries: pa.Table,
    *,
    follow: bool,
) -> pa.Table:
    """The qrels table. With ``follow``, a judgement of a dropped duplicate goes to the document
    that stays for it, with the highest grade of the two."""  # fmt: skip
    kept_for = dict(
        zip(documents["docid"].to_pylist(), documents["dup_of"].to_pylist(), strict=True)
    )
    qids = set(queries["qid"].to_pylist())

    def prepare(j: Judgement) -> tuple[tuple[str, str], str, Judgement]:
        for name, value, known in (("query", j.qid, qids), ("document", j.docid, kept_for)):
            if value not in known:
                raise BadRow("qrel_dangling", f"{name} {value!r} is not among those kept")
        return (j.qid, j.docid), str(j.rel), j

    best: dict[tuple[str, str], int] = {}
    for j, _ in tally.sift(rows, prepare):
        pair = j.qid, (kept_for[j.docid] or j.docid) if follow else j.docid
        best[pair] = max(j.rel, best.get(pair, j.rel))
    return _table("qrels", [(*pair, rel) for pair, rel in best.items()])


def quarantine_table(rejects: Sequence[Reject]) -> pa.Table:
    """The quarantine table."""
    return _table("quarantine", [(r.locator, r.code, r.detail, r.sha256, r.raw) for r in rejects])


def _table(kind: str, rows: Sequence[tuple]) -> pa.Table:
    """Tuples in the order of the schema's columns."""
    if not rows:
        return empty_table(kind)
    schema = TABLES[kind].schema
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
