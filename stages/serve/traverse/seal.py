"""SEAL's ranking of passages: how much likelier a text is to be written than to occur.

Bevilacqua, Ottaviano, Lewis, Yih, Riedel & Petroni, Autoregressive Search Engines: Generating
Substrings as Document Identifiers, NeurIPS 2022. Every prefix of a tree is a key; a passage has the
weights of the keys that stand in it, best first and no two on the same tokens, and of a key whose
tokens better keys had already only a part. The best passages get, besides, the weights of their
single tokens that no key covers. Ours: the keys are those of a walk, which SEAL takes from a beam
search; each is counted once for a passage, and very common ones not at all.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.serve.traverse.tree import Tree

ALPHA = 2.0  # power of the log-odds
BETA = 0.8  # share of a key's weight that its new tokens carry
SMOOTHING = 5  # occurrences that every text has besides its own
MOST_COUNT = 1_500  # occurrences at which a key still finds passages
RESCORED = 500  # passages that get the weights of single tokens
DIGITS = 1  # values differ in their last bits between batch shapes, and here they are squared


def weight(logp: npt.ArrayLike, count: npt.ArrayLike, n: int) -> npt.NDArray[np.float64]:
    """max(0, log-odds of being written - log-odds of occurring)^2, of texts in a corpus.

    Args:
        logp: log-probability of each text behind the prompt, below 0.
        count: occurrences of each.
        n: tokens of the corpus.
    """
    s = np.minimum(np.asarray(logp, float), -1e-9)
    u = np.log((np.asarray(count, float) + SMOOTHING) / (n + SMOOTHING))
    with np.errstate(divide="ignore"):  # a text that is everywhere has no odds
        odds = s + np.log(-np.expm1(u)) - u - np.log(-np.expm1(s))
    return np.maximum(odds, 0) ** ALPHA


def rank(tree: Tree, index: Any) -> list[tuple[int, float]]:
    """(passage, score), best first, by the index of kind suffixes that was walked; ties: number.

    Empty where every key is commoner than ``MOST_COUNT`` or likelier to occur than to be written.
    """
    scores: dict[int, float] = defaultdict(float)
    covered: dict[int, set[int]] = defaultdict(set)
    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for key, left, right, worth in keys(tree, len(index.sa)):
        places = np.sort(index.sa[left:right])
        docs = np.searchsorted(index.doc_start, places, side="right") - 1
        free: dict[int, int] = {}  # passage -> where the key stands first on tokens of nobody
        for doc, place in zip(docs.tolist(), places.tolist(), strict=True):
            if all(place + len(key) <= a or b <= place for a, b in taken[doc]):
                free.setdefault(doc, place)
        for doc, place in free.items():
            new = sum(token not in covered[doc] for token in key) / len(key)
            scores[doc] += worth * (1 - BETA + BETA * new)
            taken[doc].append((place, place + len(key)))
            covered[doc] |= set(key)
    best = sorted(scores, key=lambda doc: (-round(scores[doc], DIGITS), doc))[:RESCORED]
    logps, counts = tree.root.logps, np.diff(index.first)
    n = min(len(logps), len(counts))  # a model may have more logits than tokens
    single = weight(logps[:n], counts[:n], len(index.sa))
    for doc in best:
        scores[doc] += float(single[sorted(set(index.text(doc)) - covered[doc])].sum())
    ranked = [(doc, round(score, DIGITS)) for doc, score in scores.items()]
    return sorted(ranked, key=lambda x: (-x[1], x[0]))


def keys(tree: Tree, n: int) -> Sequence[tuple[tuple[int, ...], int, int, float]]:
    """(tokens, left, right, weight) of the prefixes that find passages, best first."""
    nodes = [node for node in tree.nodes() if node.right - node.left <= MOST_COUNT]
    counts = [node.right - node.left for node in nodes]
    weights = np.round(weight([node.likelihood for node in nodes], counts, n), DIGITS).tolist()
    found = [(x.tokens, x.left, x.right, w) for x, w in zip(nodes, weights, strict=True) if w > 0]
    return sorted(found, key=lambda key: (-key[3], key[0]))
