"""Facts without files or a model: an index in memory, with vectors that count words."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.answers import normalise
from stages.chains import triple_text
from stages.digest import uniform
from stages.index.facts import Facts, Triple, Unit, lay_out
from stages.index.layout import Index


class WordVectors:
    """An ``Encoder``: a text is the sum of its words' places, at unit length; texts are counted.

    Two texts are the nearer the more words they share.
    """

    fingerprint = "word-vectors"
    dim = 512

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str], role: str) -> npt.NDArray[np.float32]:
        self.texts += texts
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in normalise(text).split() or [""]:
                row[int(uniform(word) * self.dim)] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def facts_of(
    facts: Mapping[str, Sequence[Triple | str]], *, unit: Unit = "triple",
    encoder: WordVectors | None = None,
) -> Facts:  # fmt: skip
    """The facts of passages: triples, or texts where they are of another unit."""
    docids = sorted(facts, reverse=True)
    texts = [
        [fact if isinstance(fact, str) else triple_text(*fact) for fact in facts[docid]]
        for docid in docids
    ]
    fields = [fact for docid in docids for fact in facts[docid] if not isinstance(fact, str)]
    vectors = (encoder or WordVectors()).encode([t for own in texts for t in own], "passage")
    lists, arrays = lay_out(texts, fields, vectors)
    settings = {"unit": unit, "dtype": "f32"}
    return Facts(Index(Path("facts"), "facts", docids, arrays, lists, settings, None, "facts"))
