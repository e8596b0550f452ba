"""The evidence pool of RFM-RAG: what is kept of the passages, and what its judge is shown.

Li et al., Retrieval Feedback Memory enhancement (RFM-RAG), arXiv:2508.17862: what was retrieved
is distilled into a pool that lasts over the rounds; a model judges whether the pool is complete.
The rules of the pool are ours: when an item is a duplicate or a conflict, what goes when the pool
is full, how the best sentences of a passage are selected, and how a pool is written for the judge.

Serving fills pools, ``pairs`` makes the judge's training pools from the same parts.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.gaps import Fact, Match, fold, is_variable, numbers
from stages.text import split_sentences
from stages.types import Passage

DUP_JACCARD, DUP_COS = 0.9, 0.92
GROUNDED = 0.8  # share of a sentence's words that its passage must have
_WORD = re.compile(r"\w+")
BOUND, OTHER = "+ ", "- "  # before an item that answers a triple, and before the others


class Evidence(NamedTuple):
    """A sentence and the facts in it; where it came from, and when."""

    text: str
    docid: str  # a passage
    facts: tuple[Fact, ...] = ()
    round: int = 0
    query: str = ""  # that found the passage
    score: float = 0.0  # relevance when it was distilled
    conflict: bool = False  # another item has another object for the same subject and relation
    eid: int = 0  # number among all items of a question, in the order they came


def words(text: str) -> list[str]:
    """The words of a text, case folded, in order."""
    return _WORD.findall(text.casefold())


def is_grounded(sentence: str, passage: str, *, least: float = GROUNDED) -> bool:
    """Whether a sentence's words are in the passage, but for a share; an empty one is not."""
    said, there = Counter(words(sentence)), Counter(words(passage))
    total = said.total()
    return total > 0 and (said & there).total() >= least * total


# -- selecting --------------------------------------------------------------------------------


def relevance(text: str, wanted: Iterable[Collection[str]]) -> float:
    """The largest share of the words of one wanted set that ``text`` has, from 0 to 1."""
    there = set(words(text))
    return max((len(there & set(w)) / len(set(w)) for w in wanted if w), default=0.0)


def wanted_words(gaps: Sequence[Fact]) -> list[set[str]]:
    """Per open triple the words of its relation and of the names that are known."""
    return [{w for slot in gap if not is_variable(slot) for w in words(slot)} for gap in gaps]


def distil(
    passage: Passage, facts: Sequence[Fact], wanted: Sequence[Collection[str]], *, most: int = 3,
    least: float = 0.0,
) -> list[tuple[str, tuple[Fact, ...], float]]:  # fmt: skip
    """(sentence, its facts, relevance) of the best sentences of a passage, in their order.

    Scored selection in the place of a model's call: a sentence is worth the largest share of an
    open triple's words that it, its facts or the title has; below ``least``, or at 0, it is left
    out. A fact belongs to the first sentence that has most of its words.
    """
    sentences = [passage.text[a:b] for a, b in split_sentences(passage.text)]
    of = _assign(facts, sentences)
    scored = []
    for i, sentence in enumerate(sentences):
        own = tuple(f for f, place in zip(facts, of, strict=True) if place == i)
        text = " ".join([passage.title, sentence, *(" ".join(f) for f in own)])
        scored.append((relevance(text, wanted), i, sentence, own))
    kept = [s for s in scored if s[0] > 0 and s[0] >= least]
    best = sorted(kept, key=lambda s: (-s[0], -len(s[3]), s[1]))[:most]
    return [(text, own, score) for score, _, text, own in sorted(best, key=lambda s: s[1])]


def _assign(facts: Sequence[Fact], sentences: Sequence[str]) -> list[int]:
    """The place of each fact's sentence; -1 without sentences."""
    bags = [set(words(s)) for s in sentences]
    places = []
    for fact in facts:
        # The object is what a sentence says; the subject is often named in the title alone.
        shares = [(_share(fact.obj, b), _share(fact.subj, b) + _share(fact.rel, b)) for b in bags]
        places.append(shares.index(max(shares)) if shares else -1)
    return places


def _share(text: str, bag: set[str]) -> float:
    own = words(text)
    return sum(w in bag for w in own) / len(own) if own else 0.0


def new_names(pool: Sequence[Evidence], known: str) -> list[str]:
    """Names in the pool's facts that ``known`` does not have: latest and most relevant first.

    At most five words, and more than a number: what else stands in a slot is no name.
    """
    there = f" {fold(known)} "
    order = sorted(pool, key=lambda e: (-e.round, -e.score, e.eid))
    names = [name for e in order for f in e.facts for name in (f.subj, f.obj)]
    kept = {
        fold(n): n for n in reversed(names)
        if f" {fold(n)} " not in there and len(n.split()) <= 5 and any(c.isalpha() for c in n)
    }  # fmt: skip
    return list(kept.values())[::-1]


# -- the pool ---------------------------------------------------------------------------------


def merge(
    pool: Sequence[Evidence], found: Sequence[Evidence],
    vectors: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> tuple[list[Evidence], int]:  # fmt: skip
    """The pool with what is new in ``found`` after it, and how many items that were.

    An item is known where all its facts are; or where its text is nearly that of an item
    (Jaccard of words, or cosine of ``vectors`` within one passage), with the same numbers and no
    fact that contradicts the pool. A contradiction (same subject and relation, other object) is
    kept, and both sides are marked where they come from two passages: one names several values.
    """
    merged = list(pool)
    facts = {_key(f) for e in pool for f in e.facts}
    objects: dict[tuple[str, str], set[tuple]] = {}
    for key in facts:
        objects.setdefault(key[:2], set()).add(key[2:])
    n_new = 0
    for item in found:
        keys = [_key(f) for f in item.facts]
        if keys and all(k in facts for k in keys):
            continue
        against = {k[:2] for k in keys if k not in facts and k[:2] in objects}
        if not against and any(_is_near(item, other, vectors or {}) for other in merged):
            continue
        conflict = False
        for i, other in enumerate(merged):
            if other.docid != item.docid and any(_key(f)[:2] in against for f in other.facts):
                merged[i], conflict = other._replace(conflict=True), True
        merged.append(item._replace(conflict=conflict))
        n_new += 1
        for key in keys:
            facts.add(key)
            objects.setdefault(key[:2], set()).add(key[2:])
    return merged, n_new


def _key(fact: Fact) -> tuple:
    """A fact as it is compared: folded, with its numbers."""
    return fold(fact.subj), fold(fact.rel), fold(fact.obj), *numbers(fact.obj)


def _is_near(a: Evidence, b: Evidence, vectors: Mapping[str, npt.NDArray[np.float32]]) -> bool:
    """Whether two items say the same in nearly the same words."""
    if numbers(a.text) != numbers(b.text):  # "born 1912" is near "born 1921" for any encoder
        return False
    x, y = set(words(a.text)), set(words(b.text))
    if x | y and len(x & y) / len(x | y) >= DUP_JACCARD:
        return True
    known = a.docid == b.docid and a.text in vectors and b.text in vectors
    return known and float(vectors[a.text] @ vectors[b.text]) >= DUP_COS


def pool_facts(pool: Sequence[Evidence]) -> tuple[list[Fact], list[int]]:
    """All facts in pool order, and the item of each."""
    facts = [(f, i) for i, e in enumerate(pool) for f in e.facts]
    return [f for f, _ in facts], [i for _, i in facts]


def bound_items(pool: Sequence[Evidence], found: Match) -> dict[int, int]:
    """Item -> the first triple of the question that it answers (its hop)."""
    _, item_of = pool_facts(pool)
    bound: dict[int, int] = {}
    for hop, place in enumerate(found.used):
        if place is not None:
            bound.setdefault(item_of[place], hop)
    return bound


def evict(
    pool: Sequence[Evidence], bound: Collection[int], *, cap: int
) -> tuple[list[Evidence], list[int]]:
    """The pool within ``cap``, and the places of what had to go: least relevant first, then oldest.

    Never a bound item: coverage does not fall. More bound items than ``cap`` all stay.
    """
    free = sorted((e.score, i) for i, e in enumerate(pool) if i not in bound)
    gone = sorted(i for _, i in free[: max(0, len(pool) - cap)])
    return [e for i, e in enumerate(pool) if i not in gone], gone


def reading_order(pool: Sequence[Evidence], bound: Mapping[int, int]) -> list[int]:
    """Places of the items, what matters most first: last hop to first hop, then by relevance.

    Shown with the best last, a prompt ends with the chain in its order, beside the question.
    """
    return sorted(
        range(len(pool)), key=lambda i: (i not in bound, -bound.get(i, 0), -pool[i].score, i)
    )


# -- what the judge is shown ------------------------------------------------------------------


def judge_text(
    pool: Sequence[Evidence], found: Match, n_rounds: int, *, unread: bool = False
) -> str:
    """A pool as the judge reads it: its numbers on the first line, then an item a line.

    The numbers stand in the text so that an effect's key holds them. Items that answer a triple
    are marked: a judge that has to cut leaves them. A question that could not be read as triples
    has no coverage: its pool is judged by its text.
    """
    bound = bound_items(pool, found)
    head = f"kappa={found.kappa:.3f} items={len(pool)} round={n_rounds}"
    lines = [
        (BOUND if i in bound else OTHER) + " ".join(e.text.split()) for i, e in enumerate(pool)
    ]
    return "\n".join(lines if unread else [head, *lines])
