"""What the questions of a corpus have in common with its texts, and test questions with training.

Both are reported and change nothing: they say how a figure on this corpus is to be read.
"""

import re
import statistics
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.ingest.dedup import shingle

SEEN = 13  # words in a row that are hardly written twice (Brown et al., arXiv:2005.14165, app. C)

_TOKEN = re.compile(r"\w+")


class Asked:
    """Questions with the texts (title and body) of the documents that are relevant to them."""

    def __init__(
        self, queries: pa.Table, qrels: pa.Table, docids: pa.ChunkedArray, texts: pa.ChunkedArray
    ) -> None:
        columns = (queries[c].to_pylist() for c in ("qid", "text", "split"))
        self._questions = {qid: (text, split) for qid, text, split in zip(*columns, strict=True)}
        self._relevant: dict[str, list[str]] = defaultdict(list)
        for q, d, rel in zip(*(qrels[c].to_pylist() for c in ("qid", "docid", "rel")), strict=True):
            if rel > 0:
                self._relevant[q].append(d)
        wanted = sorted({d for ds in self._relevant.values() for d in ds})
        rows = pc.index_in(pa.array(wanted, pa.string()), docids.combine_chunks())
        self._texts = dict(zip(wanted, texts.take(rows).to_pylist(), strict=True))

    def words_in_common(self) -> float | None:
        """Mean share of a question's distinct words that its relevant documents hold; None without
        judgements. Near 1, a ranking by shared words must do well, and says little."""
        words = {d: _tokens(text) for d, text in self._texts.items()}
        shares = []
        for q in sorted(self._relevant):
            asked = _tokens(self._questions[q][0])
            held = set().union(*(words[d] for d in self._relevant[q]))
            shares.append(len(asked & held) / len(asked) if asked else 0.0)
        return round(statistics.fmean(shares), 4) if shares else None

    def test_questions_seen(self) -> dict[str, int] | None:
        """How many test questions share ``SEEN`` words in a row with a training question or a
        document that is relevant to one, in their own text or a relevant document's.

        Shorter texts count if they are equal, case and punctuation aside. None without questions
        of both splits. O(words).
        """
        sides = {
            split: [q for q, (_, s) in self._questions.items() if s == split]
            for split in ("train", "test")
        }
        if not all(sides.values()):
            return None
        row = {d: i for i, d in enumerate(self._texts)}
        rows: dict[str, list[int]] = {}
        texts = list(self._texts.values())
        for q in (*sides["train"], *sides["test"]):
            rows[q] = [len(texts), *(row[d] for d in self._relevant.get(q, ()))]
            texts.append(self._questions[q][0])
        hashes, counts = shingle(texts, SEEN)
        text_no = np.repeat(np.arange(len(texts)), counts)
        trained = np.isin(text_no, [r for q in sides["train"] for r in rows[q]])
        seen = set(text_no[np.isin(hashes, hashes[trained])].tolist())
        shared = sum(not seen.isdisjoint(rows[q]) for q in sides["test"])
        return {"test_questions": len(sides["test"]), "seen_in_training": shared}


def _tokens(text: str) -> set[str]:
    return set(_TOKEN.findall(text.lower()))
