"""BM25: what every word adds to the score of every passage is computed when the index is built.

score(q, d) = Σ_w idf(w) · tf / (tf + k1 · (1 - b + b · |d| / avgdl)),
idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5)): Lucene's variant, bm25s's default. A word that a
query repeats counts as often. A query without a known word has no hits.

Nothing is cached per passage: splitting and counting run at 25,000 passages a second, and reading
records back is no faster; idf and avgdl change with every edit anyway.

Robertson & Zaragoza, The Probabilistic Relevance Framework, 2009; Lù, BM25S, arXiv:2407.03618.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp
import Stemmer
from bm25s import stopwords as lists
from pydantic import Field, ValidationInfo, field_validator
from tqdm import tqdm

from stages.index import Inputs
from stages.index.layout import Contents, Index, KindParams, Slot, rows
from stages.index.postings import as_arrays, from_index, one_text_each, search_postings
from stages.index.ranking import as_hits
from stages.types import Hits, Query

WORD = re.compile(r"(?u)\b\w\w+\b")  # bm25s's, and scikit-learn's: two characters or more

STOPWORDS: dict[str, Sequence[str]] = {
    "none": (),
    "danish": lists.STOPWORDS_DANISH,
    "dutch": lists.STOPWORDS_DUTCH,
    "english": lists.STOPWORDS_EN,
    "french": lists.STOPWORDS_FRENCH,
    "german": lists.STOPWORDS_GERMAN,
    "italian": lists.STOPWORDS_ITALIAN,
    "norwegian": lists.STOPWORDS_NORWEGIAN,
    "portuguese": lists.STOPWORDS_PORTUGUESE,
    "russian": lists.STOPWORDS_RUSSIAN,
    "spanish": lists.STOPWORDS_SPANISH,
    "swedish": lists.STOPWORDS_SWEDISH,
    "turkish": lists.STOPWORDS_TURKISH,
}
STEMMERS = ("none", *Stemmer.algorithms())


class Params(KindParams):
    """An entry of kind bm25."""

    kind: Literal["bm25"]
    corpus: Slot  # an entry of ingest
    model: Literal["none"]
    centroids: Literal["none"]
    triples: Literal["none"] = "none"
    k1: float = Field(1.2, ge=0)  # how soon repetitions of a word stop adding
    b: float = Field(0.75, ge=0, le=1)  # how much long passages pay
    stopwords: str = "english"  # whose words to leave out, or "none"
    stemmer: str = "english"  # which Snowball stemmer, or "none"

    @field_validator("stopwords", "stemmer")
    @classmethod
    def _is_known(cls, name: str, field: ValidationInfo) -> str:
        known = STEMMERS if field.field_name == "stemmer" else tuple(STOPWORDS)
        if name not in known:
            raise ValueError(f"there are: {', '.join(known)}")
        return name


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The impacts of all words, words in order of their bytes; no passages give no words."""
    docids, texts, _ = rows(passages)
    split, stem = word_splitter(params.stopwords), word_stemmer(params.stemmer)
    bar = tqdm(texts, unit="passage", desc="words", leave=False, disable=None, delay=2)
    split_texts = [split(text) for text in bar]
    seen = sorted(set(chain.from_iterable(split_texts)))
    stem_of = dict(zip(seen, stem(seen), strict=True))  # each word is stemmed once
    vocabulary = sorted(set(stem_of.values()))
    number = {stemmed: i for i, stemmed in enumerate(vocabulary)}
    number_of = {word: number[stemmed] for word, stemmed in stem_of.items()}
    lengths = np.fromiter(map(len, split_texts), dtype=np.int64, count=len(texts))
    words = map(number_of.__getitem__, chain.from_iterable(split_texts))
    words = np.fromiter(words, dtype=np.int64, count=int(lengths.sum()))
    postings = weigh_words(words, lengths, len(vocabulary), k1=params.k1, b=params.b)
    settings = {"stopwords": params.stopwords, "stemmer": params.stemmer}
    facts = {"passages": len(docids), "words": len(vocabulary), "postings": postings.nnz}
    return Contents(docids, as_arrays(postings), {"words": vocabulary}, settings, None, facts)


def weigh_words(
    words: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    n_words: int,
    *,
    k1: float,
    b: float,
) -> sp.csr_matrix:
    """(words, rows) impacts of the rows' words, which are given one row behind the other.

    O(t log t) for t words in all: one sort brings equal words of a row together, and the rows of
    a word into order. To the last bit those of bm25s, which rounds idf first.
    """
    n = len(lengths)
    if not len(words):
        return sp.csr_matrix((n_words, n), dtype=np.float32)
    pairs, tf = np.unique(words * n + np.repeat(np.arange(n), lengths), return_counts=True)
    word, row = np.divmod(pairs, n)
    df = np.bincount(word, minlength=n_words)
    idf = np.log(1 + (n - df + 0.5) / (df + 0.5)).astype(np.float32)
    pays = k1 * (1 - b + b * lengths / lengths.mean())
    impacts = (idf[word] * (tf / (tf + pays[row]))).astype(np.float32)
    return sp.csr_matrix((impacts, row, np.append(0, np.cumsum(df))), shape=(n_words, n))


def word_splitter(stopwords: str) -> Callable[[str], list[str]]:
    """Text to its words: lower case, two characters or more, stop words left out."""
    stop = frozenset(STOPWORDS[stopwords])
    return lambda text: [w for w in WORD.findall(text.lower()) if w not in stop]


def word_stemmer(stemmer: str) -> Callable[[list[str]], list[str]]:
    """Words to what is indexed of them."""
    return list if stemmer == "none" else Stemmer.Stemmer(stemmer).stemWords


class Bm25:
    """A ``Retriever``."""

    def __init__(self, index: Index) -> None:
        self.fingerprint = index.fingerprint
        self.postings = from_index(index)
        self._number = {word: i for i, word in enumerate(index.lists["words"])}
        self._split = word_splitter(index.settings["stopwords"])
        self._stem = word_stemmer(index.settings["stemmer"])
        self._docids = np.array(index.docids, dtype=object)

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """Up to k hits per query, best first; equal scores by docid descending."""
        weights = self.weigh(one_text_each(queries, "bm25"))
        return as_hits(search_postings(weights, self.postings, k), self._docids)

    def weigh(self, queries: Sequence[str]) -> sp.csr_matrix:
        """(q, words): how often each known word stands in each query, in the query's order."""
        number, split, stem = self._number, self._split, self._stem
        ids = [[number[w] for w in stem(split(q)) if w in number] for q in queries]
        starts = np.cumsum([0] + [len(i) for i in ids])
        columns = np.array([i for of_query in ids for i in of_query], dtype=np.int32)
        ones = np.ones(len(columns), dtype=np.float32)
        return sp.csr_matrix((ones, columns, starts), shape=(len(ids), len(number)))


def retriever(index: Index, encoder: Path | None) -> Bm25:
    """BM25 has no encoder: whatever is given is not looked at."""
    return Bm25(index)
