"""What a question asks, as triples with variables; which facts answer it; what is still missing.

RFM-RAG (Li et al., arXiv:2508.17862) builds its next queries from relational triples of the
question and of the evidence, to name the gap between them. How it matches the two is not in what
we could read. Ours is the *anchored maximum-coverage assignment*: as many question triples as
possible are given a fact each, so that a variable has one value everywhere, and every matched
triple is tied to a name in the question, directly or over variables of other matched triples. Two
free variables therefore never bind to an unrelated fact.

Adding a fact or permuting the facts never lowers the coverage; a greedy first match has neither
property (tests/unit/test_evidence.py has the counter-example).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.answers import normalise

MOST_TRIPLES = 4  # of a question
OR = " / "  # between relations of which a question may mean any
Rule = Literal["value", "same", "least", "most"]  # how a question's answer follows
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Fact(NamedTuple):
    """A triple. In a question a slot that begins with "?" is a variable.

    Its relation may be several, with ``OR`` between them: any of them answers.
    """

    subj: str
    rel: str
    obj: str


def is_variable(slot: str) -> bool:
    """Whether a slot of a question's triple is unknown."""
    return slot.startswith("?")


def fold(text: str) -> str:
    """A name or query as it is compared; what normalising would empty stays as it is."""
    return normalise(text) or " ".join(text.casefold().split())


def numbers(text: str) -> list[str]:
    """The numbers in a text, sorted, without commas: "1,200" is "1200"."""
    return sorted(n.replace(",", "") for n in _NUMBER.findall(text))


@dataclass(frozen=True, slots=True)
class Alike:
    """When two names, or two relations, are taken as one.

    Names: equal when folded; or the shorter one, of two words or more, stands in the other; or
    their vectors are as near as ``name_cos``. Relations: equal when folded, or vectors as near as
    ``rel_cos``. Different numbers are never alike. Without vectors nothing is computed by a model.
    """

    contained: bool = True
    vectors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # of folded texts
    name_cos: float = 0.85
    rel_cos: float = 0.75

    def names(self, a: str, b: str) -> bool:
        """Whether two entities are the same."""
        x, y = fold(a), fold(b)
        if x == y:
            return numbers(a) == numbers(b)  # folding takes the point out of 12.5
        short, long = sorted((x, y), key=len)
        if self.contained and len(short.split()) >= 2 and f" {short} " in f" {long} ":
            return True
        return numbers(a) == numbers(b) and self._near(x, y, self.name_cos)

    def relations(self, a: str, b: str) -> bool:
        """Whether two relations are the same."""
        x, y = fold(a), fold(b)
        return x == y or (numbers(a) == numbers(b) and self._near(x, y, self.rel_cos))

    def _near(self, x: str, y: str, least: float) -> bool:
        known = x in self.vectors and y in self.vectors
        return known and float(self.vectors[x] @ self.vectors[y]) >= least


EXACT = Alike(contained=False)  # equality alone


class Match(NamedTuple):
    """Which fact answers which triple of a question, and what its variables are then."""

    used: tuple[int | None, ...]  # per triple the fact's place, None where it is open
    bound: dict[str, str]  # variable -> value

    @property
    def kappa(self) -> float:
        """Coverage: the share of triples that are answered; 0 of no triples."""
        return sum(p is not None for p in self.used) / len(self.used) if self.used else 0.0


Choice = tuple[int, tuple[tuple[str, str], ...]]  # a fact's place, and the values it would give


def match(asked: Sequence[Fact], facts: Sequence[Fact], alike: Alike = EXACT) -> Match:
    """The anchored assignment that answers most triples; of several the earliest facts.

    Earliest: the places, triple by triple, come first in lexicographic order, an open triple
    last. A fact's object "A, B, C" may answer as a whole or as one of its parts. Backtracking,
    best first: in the order of the triples, with facts in their order, cut where the triples
    that could still be answered are too few for more than the best so far.
    """
    options = [list(_options(triple, facts, alike)) for triple in asked]
    best = Match((None,) * len(asked), {})
    most = 0

    def search(used: tuple[int | None, ...], bound: dict[str, str]) -> None:
        nonlocal best, most
        i = len(used)
        fits = [[c for c in options[j] if _fits(c, bound, alike)] for j in range(i, len(asked))]
        if sum(p is not None for p in used) + sum(map(bool, fits)) <= most:
            return
        if i == len(asked):
            if _is_anchored(asked, used):
                best, most = Match(used, bound), sum(p is not None for p in used)
            return
        for place, values in fits[0]:
            search((*used, place), {**dict(values), **bound})  # the first value of a name stays
            if most == len(asked):
                return
        search((*used, None), bound)

    search((), {})
    return best


def _options(triple: Fact, facts: Sequence[Fact], alike: Alike) -> Iterator[Choice]:
    """The facts that agree with what the question names, and the values for its variables."""
    for place, fact in enumerate(facts):
        if not any(alike.relations(rel, fact.rel) for rel in triple.rel.split(OR)):
            continue
        for obj in _parts(fact.obj):
            slots = ((triple.subj, fact.subj), (triple.obj, obj))
            if all(is_variable(slot) or alike.names(slot, value) for slot, value in slots):
                values = tuple((slot, value) for slot, value in slots if is_variable(slot))
                if triple.subj != triple.obj or alike.names(fact.subj, obj):
                    yield place, values


def _parts(obj: str) -> list[str]:
    """An object as a whole, and what its commas divide: "A, B" may be two values."""
    parts = [part.strip() for part in obj.split(",")]
    return [obj, *(p for p in parts if p)] if len(parts) > 1 else [obj]


def _fits(choice: Choice, bound: Mapping[str, str], alike: Alike) -> bool:
    return all(name not in bound or alike.names(bound[name], value) for name, value in choice[1])


def _is_anchored(asked: Sequence[Fact], used: Sequence[int | None]) -> bool:
    """Whether every answered triple hangs on a name of the question."""
    todo = [t for t, place in zip(asked, used, strict=True) if place is not None]
    known: set[str] = set()
    while ready := [t for t in todo if any(not is_variable(s) or s in known for s in (t[0], t[2]))]:
        known |= {s for t in ready for s in (t.subj, t.obj)}
        todo = [t for t in todo if t not in ready]
    return not todo


def alternatives(
    asked: Sequence[Fact], facts: Sequence[Fact], found: Match, alike: Alike = EXACT, *,
    most: int = 2,
) -> dict[str, list[str]]:  # fmt: skip
    """The values that each bound variable may have, the assignment's own first.

    Others come from facts that answer the same triple with all else as it is: one wrong binding
    must not decide the whole chain.
    """
    values: dict[str, list[str]] = {}
    for triple, place in zip(asked, found.used, strict=True):
        for name in (triple.subj, triple.obj):
            if place is None or not is_variable(name) or name in values:
                continue
            rest = {k: v for k, v in found.bound.items() if k != name}
            others = [
                dict(c[1])[name] for c in _options(triple, facts, alike) if _fits(c, rest, alike)
            ]
            known = {fold(v): v for v in reversed([found.bound[name], *others])}
            values[name] = list(reversed(known.values()))[:most]
    return values


def gaps(asked: Sequence[Fact], found: Match, bound: Mapping[str, str] | None = None) -> list[Fact]:
    """The open triples, with the values of their variables where these are known."""
    bound = found.bound if bound is None else bound
    return [
        Fact(bound.get(t.subj, t.subj), t.rel, bound.get(t.obj, t.obj))
        for t, place in zip(asked, found.used, strict=True)
        if place is None
    ]


def gap_query(gap: Fact) -> str:
    """ "known name relation"; empty where neither name is known: a bare relation finds noise."""
    subj, obj = ("" if is_variable(s) else s for s in (gap.subj, gap.obj))
    if not subj and not obj:
        return ""
    rel = gap.rel.replace(OR, " ")
    words = (subj, rel, obj) if subj else (obj, rel)
    return " ".join(w for w in words if w)


def gap_queries(
    asked: Sequence[Fact], found: Match, values: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """A query for each open triple with a known name; after them those with other values."""
    values = values or {}
    depth = max((len(v) for v in values.values()), default=1)
    queries: list[str] = []
    for n in range(max(depth, 1)):
        nth = {k: v[min(n, len(v) - 1)] for k, v in values.items() if v}
        queries += [gap_query(g) for g in gaps(asked, found, {**found.bound, **nth})]
    return list(dict.fromkeys(q for q in queries if q))


def copy_answer(asked: Sequence[Fact], rule: Rule, found: Match) -> str:
    """The answer by copying: the last object's value, or what a comparison of the values gives.

    "same" is yes or no; "least" and "most" the subject whose value has that number. Empty where a
    value that is needed is not known.
    """
    values = [found.bound.get(t.obj, "") for t in asked]
    if not values or not values[-1]:
        return ""
    if rule == "value":
        return values[-1]
    if not all(values) or len(values) < 2:
        return ""
    if rule == "same":
        return "yes" if fold(values[0]) == fold(values[1]) else "no"
    sizes = [float(n[0]) if (n := numbers(v)) else None for v in values]
    if None in sizes:
        return ""
    best = (min if rule == "least" else max)(sizes)
    return asked[sizes.index(best)].subj
