"""BM25 against bm25s: indexing, and 930 queries at k = 100 from texts to docids and scores.

The collection is NPL where it lies beside this checkout (11,429 abstracts, its 93 queries ten
times), else as many documents joined from Semanlink's paragraphs. Both sides end with docids and
scores as arrays; ours has equal scores in order. One thread on both sides.

Same result: scores equal to 1e-6 relative, and the same documents above each query's last score
(among documents equal to the last one the peer takes any). bm25s runs twice: by its default
(numpy) and compiled (numba, which comes with ranx and is no dependency of the stages: compiling
takes seconds in each process).
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import bm25s
import numpy as np
import pyarrow as pa
import Stemmer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import compare
from stages.digest import digest
from stages.index import Inputs, bm25, layout
from stages.tables import read_table, table
from stages.types import Hits

K = 100
REPEAT = 10
SPLIT = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
NPL = ROOT.parent / "shared" / "data" / "npl"


def collection() -> tuple[pa.Table, list[str]]:
    """(passages, queries)."""
    if NPL.exists():
        docs = [json.loads(line) for line in (NPL / "corpus.jsonl").open(encoding="utf-8")]
        texts = {d["_id"]: (d["title"], d["text"]) for d in docs}
        lines = (NPL / "queries.jsonl").open(encoding="utf-8")
        return as_passages(texts), [json.loads(line)["text"] for line in lines] * REPEAT
    folder = ROOT / "data" / "ingest" / "semanlink"
    parts = read_table(folder, "passages")["text"].to_pylist()
    rng = random.Random(13)
    texts = {str(i): ("", " ".join(rng.sample(parts, 2))) for i in range(11_429)}
    return as_passages(texts), read_table(folder, "queries")["text"].to_pylist()


def as_passages(texts: dict[str, tuple[str, str]]) -> pa.Table:
    """One passage per document."""
    rows = [
        {
            "docid": f"{d}#0", "parent": d, "seq": 0, "title": title, "text": text, "start": 0,
            "end": len(text), "text_hash": digest(title, text),
        }
        for d, (title, text) in texts.items()
    ]  # fmt: skip
    return table("passages", rows)


def assert_same(ours: list[Hits], theirs: tuple[np.ndarray, np.ndarray]) -> None:
    """Scores to 1e-6 relative, and docids above the last score of each query."""
    for hits, docids, scores in zip(ours, *theirs, strict=True):
        mine = hits.scores
        found = scores[: len(mine)]  # where fewer than k passages match, the peer fills with 0
        np.testing.assert_allclose(mine, found, rtol=1e-6)
        assert not scores[len(mine) :].any()
        last = scores[-1] * (1 + 1e-6)
        peers = {d for d, s in zip(docids, scores, strict=True) if s > last}
        assert {h.docid for h in hits if h.score > last} == peers


def main() -> None:
    """Print one JSON line per comparison."""
    passages, queries = collection()
    docids, texts, _ = layout.rows(passages)
    params = bm25.Params(kind="bm25", corpus="c", model="none", centroids="none")
    contents = bm25.build(passages, params, Inputs(store=None))
    with tempfile.TemporaryDirectory() as folder:
        layout.write_index(Path(folder), "bm25", contents)
        retriever = bm25.retriever(layout.read_index(Path(folder)), None)
    names = np.array(docids)

    def index_peer() -> int:
        peer = bm25s.BM25(k1=1.2, b=0.75)
        peer.index(bm25s.tokenize(texts, **SPLIT), show_progress=False)
        return len(peer.scores["data"])

    def same_size(ours: layout.Contents, theirs: int) -> None:
        assert ours.facts["postings"] == theirs

    compare(
        "bm25 index", peer="bm25s", unit="documents/s", aim=0.95, work=len(docids),
        ours=lambda: bm25.build(passages, params, Inputs(store=None)), theirs=index_peer,
        check=same_size,
    )  # fmt: skip
    for backend in ("numpy", "numba"):
        peer = bm25s.BM25(k1=1.2, b=0.75, backend=backend)
        peer.index(bm25s.tokenize(texts, **SPLIT), show_progress=False)

        def search_peer(peer: bm25s.BM25 = peer) -> tuple[np.ndarray, np.ndarray]:
            tokens = bm25s.tokenize(queries, return_ids=False, **SPLIT)
            return peer.retrieve(tokens, corpus=names, k=K, show_progress=False)

        compare(
            "bm25 search", peer=f"bm25s ({backend})", unit="queries/s", aim=0.95,
            work=len(queries), ours=lambda: retriever.search(queries, K), theirs=search_peer,
            check=assert_same,
        )  # fmt: skip


if __name__ == "__main__":
    main()
