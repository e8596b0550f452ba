"""Which clusters to copy, and in which order: rank by rank over all queries, within the budget.

Rank 1 of every query, then rank 2 of every query ...: a cluster that is resident, or was planned
before, is a hit; one that fits what is left of the budget and of the room is planned; one that does
not is skipped, and smaller ones behind it may still be taken. (The official code's test breaks its
inner loop only, which comes to the same: decided here, and tested.)

A visit behind the last cluster that could still be taken is not a hit: once the budget is spent,
the rest of a list says nothing about what should stay.

Lin et al., TeleRAG, arXiv:2502.20969, §3.2.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.clusters import Floats, Ints, nearest_clusters

DEPTH = 1024  # clusters per query that are looked at, as in the official code


class Plan(NamedTuple):
    """What a prefetch does."""

    clusters: Ints  # to copy, in this order; each once
    hits: Ints  # resident or planned already when they were visited; may repeat


def rank_clusters(queries: Floats, centroids: Floats, depth: int = DEPTH) -> Ints:
    """(q, depth) the clusters of each query, nearest first."""
    return nearest_clusters(queries, centroids, depth)


def plan(
    ranked: Ints,
    resident: npt.NDArray[np.bool_],
    nbytes: Ints,
    budget: int,
    *,
    pages: Ints | None = None,
    room: int = 0,
) -> Plan:
    """What to copy for queries with these lists (q, depth).

    ``nbytes`` (nlist,) is what each cluster takes of ``budget``, ``pages`` (nlist,) what it takes
    of ``room``; without ``pages`` there is room for all. O(visits log visits).
    """
    visits = ranked.T.ravel()  # rank-major
    _, first = np.unique(visits, return_index=True)
    new = np.sort(first)
    new = new[~resident[visits[new]]]  # places in ``visits``
    costs, limits = [nbytes[visits[new]]], [budget]
    if pages is not None:
        costs, limits = [*costs, pages[visits[new]]], [*limits, room]
    taken = take_in_order(np.stack(costs), np.array(limits))
    end = len(visits)
    if len(taken) < len(new):
        refused = np.setdiff1d(np.arange(len(new)), taken)
        end = 1 + max(new[taken[-1]] if len(taken) else 0, new[refused[0]])
    there = resident.copy()
    there[visits[new[taken]]] = True
    is_hit = there[visits]
    is_hit[new[taken]] = False  # the visit that planned it
    return Plan(visits[new[taken]], visits[:end][is_hit[:end]])


def take_in_order(costs: Ints, limits: Ints) -> Ints:
    """Places of items (r, m) taken one after another, each one that still fits all r limits.

    One turn of the loop for every run of items that fit together, not for every item.
    """
    taken: list[npt.NDArray[np.int64]] = []
    left, at = limits.astype(np.int64), np.arange(costs.shape[1])
    while len(at):
        at = at[(costs[:, at] <= left[:, None]).all(0)]  # what does not fit now never will
        sums = np.cumsum(costs[:, at], axis=1)
        n = int((sums <= left[:, None]).all(0).sum())  # sums ascend: a prefix
        if n:
            left = left - sums[:, n - 1]
            taken.append(at[:n])
        at = at[n:]
    return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)
