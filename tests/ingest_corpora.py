"""Small sources on disk, and the corpus that the room makes of them."""

import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.ingest.corpus import Corpus, build_corpus
from stages.records import RecordStore


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """A .jsonl file; bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def ingest(source: str, path: Path, store: Path, **values: Any) -> Corpus:
    """The corpus of one entry, its records in ``store``."""
    module = import_module(f"stages.ingest.{source}")
    params = module.Params(source=source, path=str(path), **values)
    with RecordStore(store) as records:
        return build_corpus(
            module.read(path, params, records), where=str(path),
            chunking=params.chunk.model_dump(), deduping=params.dedup.model_dump(),
            max_chars=params.max_chars, keep_empty=params.keep_empty,
            quarantine_max=params.quarantine_max, store=records,
        )  # fmt: skip


def rows(corpus: Corpus, kind: str) -> list[dict[str, Any]]:
    return corpus.tables[kind].to_pylist()


def column(corpus: Corpus, kind: str, name: str) -> list[Any]:
    return corpus.tables[kind][name].to_pylist()
