"""A benchmark in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/<split>.tsv.

Thakur, Reimers, Rücklé, Srivastava & Gurevych, "BEIR: A Heterogeneous Benchmark for Zero-shot
Evaluation of Information Retrieval Models", NeurIPS 2021 (Datasets and Benchmarks).

Ids are strings even where they look like numbers; a title may be empty, and so may a text that
has a title. Queries and judgements may be missing. Defaults keep published numbers: a passage
is a document, duplicates are marked and stay, and so do documents without any text (BM25's
R@100 on Cranfield is 0.7314 with its two, of which one is judged, and 0.7308 without).
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from stages.errors import QuarryError
from stages.ingest.lines import canonical_json, parse_object, read_qrels, read_queries, read_rows
from stages.ingest.source import Raw, Reject, Source, SourceParams, id_field, text_field
from stages.records import RecordStore

CORPUS = "corpus.jsonl"


class Params(SourceParams):
    """An entry with ``source: beir``; ``path`` is the folder."""

    keep_empty: bool = True
    max_line_bytes: int = Field(4_194_304, gt=0)  # longer lines are set aside: oversize


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """The folder ``path``."""
    if not (path / CORPUS).is_file():
        raise QuarryError(
            f"{path}: expected a folder in BEIR layout with {CORPUS}, queries.jsonl and "
            f"qrels/*.tsv; there is no {CORPUS}. Name the folder that holds it."
        )
    limit = params.max_line_bytes
    return Source(
        read_corpus(path, max_line_bytes=limit),
        read_queries(path, max_line_bytes=limit),
        read_qrels(path, max_line_bytes=limit),
    )


def read_corpus(folder: Path, *, max_line_bytes: int) -> Iterator[Raw | Reject]:
    """The documents of corpus.jsonl."""

    def parse(line: bytes, locator: str) -> Raw:
        row = parse_object(line)
        docid, title = id_field(row, "_id"), text_field(row, "title")
        text = text_field(row, "text", required=True)
        rest = {k: v for k, v in row.items() if k not in ("_id", "title", "text")}
        return Raw(docid, title, text, locator, canonical_json(rest), line)

    return read_rows(
        folder / CORPUS, parse, name=CORPUS, max_line_bytes=max_line_bytes,
        expected="one JSON object a line with '_id', 'title' and 'text'",
    )  # fmt: skip
