"""Stochastic beam search inside a corpus: M distinct continuations, drawn without replacement.

Kool, van Hoof & Welling, Stochastic Beams and Where to Find Them, ICML 2019. Every partial text
has its log-probability phi and a Gumbel variable g of that location; the children of a text get
such variables, conditioned on their largest being g, and the M largest of all stay: then the
M continuations are a sample without replacement of the model's, restricted to the corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.digest import digest

NARROW = 4_096  # occurrences; all that follow fewer are looked at, of more the likeliest


@dataclass(slots=True, eq=False)
class Beam:
    """A partial continuation: its prefix from the root on, and where it stands."""

    tokens: tuple[int, ...]
    left: int
    right: int
    columns: tuple[int, ...]
    logps: npt.NDArray[np.float32] | None
    phi: float = 0.0  # since the search began
    g: float = 0.0
    likelihood: float = 0.0  # of all tokens, among all tokens
    hidden: npt.NDArray[np.float32] | None = None  # of the last token
    ended: bool = False  # nothing follows, or it names its passages


class Follow(NamedTuple):
    """What may follow a beam: (c,) arrays."""

    token: npt.NDArray[np.integer]
    left: npt.NDArray[np.integer]
    right: npt.NDArray[np.integer]


def conditioned(
    g: float, phi: npt.NDArray[np.float64], random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Gumbel variables of locations ``phi`` whose largest is g (Kool et al., appendix B.3)."""
    noisy = phi + random.gumbel(size=len(phi))
    with np.errstate(divide="ignore"):
        v = g - noisy + np.log1p(-np.exp(noisy - noisy.max()))
        return g - np.maximum(v, 0) - np.log1p(np.exp(-np.abs(v)))


def restricted(logps: npt.NDArray[np.floating], temperature: float) -> npt.NDArray[np.float64]:
    """Log-probabilities of the tokens that are left, at a temperature."""
    x = logps.astype(np.float64) / temperature
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def draw_of(seed: int, query: str, n_known: int, tokens: Sequence[int]) -> np.random.Generator:
    """The random numbers of one prefix of one query: the same in any company."""
    fields = map(str, (seed, n_known, *tokens))
    return np.random.default_rng(int(digest(query, *fields)[:16], 16))


def follow(index: Any, beams: Sequence[Beam], *, candidates: int, least: int) -> list[Follow]:
    """What may follow each, from as few calls of the index as there are ways to ask.

    The beginning: every token that begins a walk. A narrow prefix: all that follow. A wide one:
    those of its likeliest tokens that follow, or all where fewer than ``least`` of them do.
    """
    found: dict[int, Follow] = {}
    narrow = [i for i, b in enumerate(beams) if b.tokens and b.right - b.left <= NARROW]
    wide = [i for i, b in enumerate(beams) if b.tokens and b.right - b.left > NARROW]
    if wide:
        k = min(candidates, len(beams[wide[0]].logps))
        likeliest = [np.argpartition(-beams[i].logps, k - 1)[:k] for i in wide]
        part = index.among(*_ranges(beams, wide), np.sort(likeliest, axis=1))
        found |= _by_owner(part, wide)
        narrow += [i for i in wide if len(found[i].token) < least]
    if narrow:
        found |= _by_owner(index.children(*_ranges(beams, narrow)), narrow)
    roots = Follow(index.roots.token, index.roots.left, index.roots.right)
    return [found.get(i, roots) for i in range(len(beams))]


def _ranges(beams: Sequence[Beam], numbers: Sequence[int]) -> tuple[npt.NDArray[np.int64], ...]:
    rows = [(beams[i].left, beams[i].right, len(beams[i].tokens)) for i in numbers]
    return tuple(np.array(rows, np.int64).T)


def _by_owner(children: Any, numbers: Sequence[int]) -> dict[int, Follow]:
    ends = np.searchsorted(children.owner, np.arange(len(numbers) + 1))
    return {
        i: Follow(*(x[a:b] for x in children[1:]))
        for i, a, b in zip(numbers, ends, ends[1:], strict=False)
    }


def advance(
    beams: Sequence[Beam], options: Sequence[Follow], query: str, *, width: int, temperature: float,
    stop_count: int, seed: int, known: Sequence[tuple[int, int]] = (),
) -> tuple[list[Beam], list[Beam]]:  # fmt: skip
    """One step of one search: (the beams that stay, those of them that have a new token).

    ``options`` are of the beams that have not ended, in order. A beam that nothing follows ends.
    ``known`` are the rows (left, right) of continuations that were drawn before, ascending: a token
    that leads to these alone is not allowed.
    """
    each = iter(options)
    pool: list[tuple[float, Beam, int, float]] = []  # (g, beam or parent, option or -1, phi)
    follows: dict[int, Follow] = {}
    for beam in beams:
        option = None if beam.ended else next(each)
        if option is None or not len(option.token):
            beam.ended = True
            pool.append((beam.g, beam, -1, beam.phi))
            continue
        if known:
            new = covered(option, known) < option.right - option.left
            option = Follow(*(x[new] for x in option))
            if not len(option.token):
                continue
        follows[id(beam)] = option
        phi = beam.phi + restricted(beam.logps[option.token], temperature)
        g = conditioned(beam.g, phi, draw_of(seed, query, len(known), beam.tokens))
        best = np.argsort(-g, kind="stable")[:width]  # of one parent no more can stay
        pool += [(float(g[i]), beam, int(i), float(phi[i])) for i in best]
    pool.sort(key=lambda x: (-x[0], x[1].tokens, x[2]))
    kept: list[Beam] = []
    fresh: list[Beam] = []
    for g, beam, i, phi in pool[:width]:
        if i < 0:
            kept.append(beam)
            continue
        token, left, right = (int(x[i]) for x in follows[id(beam)])
        child = replace(
            beam, tokens=(*beam.tokens, token), left=left, right=right, phi=phi, g=g,
            likelihood=beam.likelihood + float(beam.logps[token]), logps=None, hidden=None,
            ended=right - left <= stop_count,
        )  # fmt: skip
        kept.append(child)
        fresh.append(child)
    return kept, fresh


def covered(option: Follow, known: Sequence[tuple[int, int]]) -> npt.NDArray[np.integer]:
    """How many of the rows of each option are those of known continuations; these are disjoint."""
    lefts, rights = np.array(known).T
    before = np.r_[0, np.cumsum(rights - lefts)]
    return (
        before[np.searchsorted(lefts, option.right)] - before[np.searchsorted(lefts, option.left)]
    )
