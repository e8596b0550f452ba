"""The passages that a hit points at, and where they come from."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.serve.asked import Library
from stages.tables import read_table
from stages.types import Hit

FIELDS = ["docid", "parent", "seq", "start", "end", "title", "text", "text_hash"]


class Corpus:
    """A corpus as ``ingest`` wrote it; its tables stay valid when the folder is replaced."""

    def __init__(self, folder: Path) -> None:
        self._passages = read_table(folder, "passages").select(FIELDS)
        self._origin: dict[str, tuple[str, str]] = {}  # document -> (locator, dup_of)
        if (folder / "documents.parquet").exists():
            columns = read_table(folder, "documents").select(["docid", "locator", "dup_of"])
            docids, *origins = (column.to_pylist() for column in columns)
            self._origin = dict(zip(docids, zip(*origins, strict=True), strict=True))

    def library(self, count_tokens: Callable[[list[str]], list[int]] | None) -> Library:
        """What a strategy may look up."""
        return Library(self._passages, count_tokens)

    @cached_property
    def _row(self) -> dict[str, int]:
        return {docid: i for i, docid in enumerate(self._passages["docid"].to_pylist())}

    def describe(self, hits: Sequence[Hit]) -> list[dict[str, Any]]:
        """Each hit with its passage and its lineage: parent, place in it, locator in the source.

        Raises:
            KeyError: a docid is not of this corpus.
        """
        rows = pa.array([self._row[hit.docid] for hit in hits], pa.int64())
        found = self._passages.take(rows).to_pylist()
        return [
            {"docid": hit.docid, "score": hit.score, **passage, **self._lineage(passage["parent"])}
            for hit, passage in zip(hits, found, strict=True)
        ]

    def _lineage(self, parent: str) -> dict[str, Any]:
        locator, dup_of = self._origin.get(parent, (None, None))
        return {"locator": locator, "dup_of": dup_of or None}
