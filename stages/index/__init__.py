"""index: the passages of a corpus, ready to be searched. One kind of index is one file.

Reads ``passages`` of ``data/ingest/<corpus>`` (title and text are what is indexed), the encoder in
``data/finetune/<model>`` where the kind has one, and writes ``data/index/<entry>``: meta.json,
docids.json, plain .npy arrays; equal inputs make equal bytes, nothing is pickled.

Every kind is one file with ``build(passages, params, inputs) -> Contents`` and
``retriever(index, encoder) -> Retriever``. Rows lie in descending order of docid, so that "equal
scores by docid descending" is "by row", also where k cuts through equal scores.

Reading order: layout.py (the directory), ranking.py (the k best, ties), postings.py with bm25.py
and splade.py, vectors.py with flat.py, lists.py with centroids.py, ivf.py and clustered.py,
facts.py, suffixes.py (a generator's tokens, sorted), __main__.py (the shell).

``open_index`` is the one door between rooms.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages import shell

if TYPE_CHECKING:
    from stages.records import RecordStore
    from stages.types import Retriever

KINDS = {
    "bm25": "bm25",
    "splade": "splade",
    "flat": "flat",
    "ivf": "ivf",
    "clustered": "clustered",
    "centroids": "centroids",
    "facts": "facts",
    "suffixes": "suffixes",
}


class Inputs(NamedTuple):
    """What a kind may read beside the passages; None where a slot says ``none``."""

    store: "RecordStore"
    model: Path | None = None
    centroids: Path | None = None
    triples: Path | None = None


def open_index(path: Path, encoder: Path | None = None) -> "Retriever":
    """The retriever of an index directory; ``encoder`` is a model directory.

    A kind without an encoder does not look at it.

    Raises:
        QuarryError: not an index, or one that another encoder made, or none was given.
    """
    from stages.index import layout

    index = layout.read_index(path)
    return shell.method("stages.index", KINDS[index.kind]).retriever(index, encoder)
