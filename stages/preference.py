"""Preferences as data: groups of ranked candidates, what makes them valid, the pairs in them.

One pair of tables serves every method that trains on preferences (DPO, RPO, LarPO, MART, RAR²):
``pref_groups`` has a row per prompt, ``pref_candidates`` a row per text that may follow it, with
a score and a dense rank (0 is best, equal scores share a rank). A label says which part of the
loss a candidate may play: +1 chosen, -1 rejected, 0 none. Pairs are derived, never stored by
hand. ``stages.preference_losses`` are the formulas, ``stages.preference_trainer`` trains.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from stages.digest import digest
from stages.errors import QuarryError

Pairing = Literal["best_worst", "best_rest", "cross", "all"]

PREF_PAIRS = pa.schema(
    {
        "pair_id": pa.string(), "group_id": pa.string(), "chosen_id": pa.string(),
        "rejected_id": pa.string(), "gap": pa.float32(), "weight": pa.float32(),
    }
)  # fmt: skip


class Candidate(NamedTuple):
    """One text that may follow a group's prompt."""

    cand_id: str
    text: str
    score: float
    rank: int
    label: int
    n_trials: int
    n_success: int
    sampled: bool  # by the model itself; a gold answer is not


class Group(NamedTuple):
    """A prompt and its candidates, best first."""

    group_id: str
    kind: str
    split: str
    prompt: str
    context: str  # lies between the prompt and a candidate; may be empty
    sign: int
    weight: float
    candidates: tuple[Candidate, ...]


def dense_ranks(scores: Sequence[float]) -> list[int]:
    """The rank of each score: 0 for the largest, equal for equal scores, without gaps."""
    place = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return [place[score] for score in scores]


def preferred(
    ranks: Sequence[int], labels: Sequence[int], pairing: Pairing
) -> list[tuple[int, int]]:
    """The (i, j) of candidates in rank order where i is preferred to j, in that order.

    best_worst: the first against the last; best_rest: the first against each that is worse;
    cross: each chosen against each rejected; all: every two. Never two of one rank, never one
    with label 0.
    """
    known = [i for i, label in enumerate(labels) if label]
    every = [(i, j) for i in known for j in known if ranks[i] < ranks[j]]
    if pairing == "best_worst":
        return [(i, j) for i, j in every if i == known[0] and j == known[-1]]
    if pairing == "best_rest":
        return [(i, j) for i, j in every if i == known[0]]
    if pairing == "cross":
        return [(i, j) for i, j in every if labels[i] > 0 > labels[j]]
    return every


def read_groups(groups: pa.Table, candidates: pa.Table) -> list[Group]:
    """The two tables as validated groups, in table order.

    Raises:
        QuarryError: naming the first group that breaks a rule of ``validate``.
    """
    by_group: dict[str, list[dict[str, Any]]] = {}
    for row in candidates.to_pylist():
        by_group.setdefault(row["group_id"], []).append(row)
    rows = groups.to_pylist()
    validate(rows, by_group)
    found = []
    for g in rows:
        ranked = sorted(by_group[g["group_id"]], key=lambda c: (c["rank"], c["cand_id"]))
        members = tuple(
            Candidate(
                c["cand_id"], c["text"], c["score"], c["rank"], c["label"], c["n_trials"],
                c["n_success"], c["temperature"] >= 0,
            )
            for c in ranked
        )  # fmt: skip
        found.append(Group(
            g["group_id"], g["kind"], g["split"], g["prompt"], g["context"] or "",
            g["retrieval_sign"], g["weight"], members,
        ))  # fmt: skip
    return found


def validate(groups: list[dict[str, Any]], by_group: dict[str, list[dict[str, Any]]]) -> None:
    """An error at the first group, in table order, that training could not use.

    Raises:
        QuarryError: naming the group, what is wrong and what was expected.
    """
    splits: dict[str, str] = {}
    for g in groups:
        problem = _group_problem(g, splits) or _list_problem(by_group.get(g["group_id"], []))
        if problem:
            raise QuarryError(
                f"preference group {g['group_id']} (qid {g['qid']}, {g['method']}/{g['kind']}): "
                f"{problem}. Correct the recipe under 'pairs' that makes it."
            )
    if strays := sorted(by_group.keys() - {g["group_id"] for g in groups}):
        raise QuarryError(
            f"pref_candidates names group {strays[0]}, which pref_groups has not. "
            f"Rebuild both tables: dvc repro."
        )


def _group_problem(g: dict[str, Any], splits: dict[str, str]) -> str:
    """What is wrong with a row of pref_groups, or nothing; ``splits`` remembers each qid's."""
    if splits.setdefault(g["qid"], g["split"]) != g["split"]:
        return f"its qid is in split {splits[g['qid']]} and in {g['split']}"
    if not (math.isfinite(g["weight"]) and g["weight"] >= 0):
        return f"weight is {g['weight']}, expected 0 or more"
    sign = g["retrieval_sign"]
    if (sign != 0) != (g["method"] == "rpo"):
        return f"retrieval_sign is {sign}; rpo groups have +1 or -1, all others 0"
    if sign and not g["context"]:
        return "a group with a retrieval_sign needs a context"
    return ""


def _list_problem(candidates: list[dict[str, Any]]) -> str:
    """What is wrong with a group's candidates, or nothing."""
    labelled = {c["rank"] for c in candidates if c["label"]}
    if len(labelled) < 2:
        return f"{len(candidates)} candidates with {len(labelled)} distinct ranks, two are needed"
    texts = [c["text"] for c in candidates]
    if "" in texts:
        return "a candidate is empty"
    if len(set(texts)) < len(texts):
        return f"two candidates have the text {max(texts, key=texts.count)!r:.60}"
    scores, ranks = [c["score"] for c in candidates], [c["rank"] for c in candidates]
    if not all(map(math.isfinite, scores)):
        return f"scores are {scores}, expected finite numbers"
    if ranks != dense_ranks(scores):
        return f"ranks {ranks} do not follow scores {scores}"
    if any(a["label"] > 0 > b["label"] and a["rank"] >= b["rank"] for a in candidates
           for b in candidates):  # fmt: skip
        return "a candidate labelled chosen is not better than one labelled rejected"
    return ""


def derive_pairs(groups: Sequence[Group], pairing: Pairing) -> pa.Table:
    """The (chosen, rejected) pairs of all groups, by group_id, then rank, then cand_id.

    A group's weight is shared out among its pairs: many rejected texts do not make a prompt
    count for more.
    """
    rows = []
    for group, i, j, n in _pairs(groups, pairing):
        chosen, rejected = group.candidates[i], group.candidates[j]
        rows.append({
            "pair_id": digest("pair", group.group_id, chosen.cand_id, rejected.cand_id),
            "group_id": group.group_id, "chosen_id": chosen.cand_id,
            "rejected_id": rejected.cand_id, "gap": chosen.score - rejected.score,
            "weight": group.weight / n,
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PREF_PAIRS)


def trl_rows(groups: Sequence[Group], pairing: Pairing) -> list[dict[str, str]]:
    """The same pairs as TRL's trainers read them: prompt (with its context), chosen, rejected."""
    return [
        {
            "prompt": g.prompt + g.context,
            "chosen": g.candidates[i].text,
            "rejected": g.candidates[j].text,
        }
        for g, i, j, _ in _pairs(groups, pairing)
    ]


def _pairs(groups: Sequence[Group], pairing: Pairing) -> Iterator[tuple[Group, int, int, int]]:
    """(group, chosen, rejected, pairs in the group)."""
    for group in sorted(groups, key=lambda g: g.group_id):
        cs = group.candidates
        pairs = preferred([c.rank for c in cs], [c.label for c in cs], pairing)
        yield from ((group, i, j, len(pairs)) for i, j in pairs)


def win_probability(wins_a: int, trials_a: int, wins_b: int, trials_b: int) -> float:
    """P(p_a > p_b) for two success rates with Beta(1, 1) priors and these counts.

    The exact sum over a's successes; 2/2 against 0/2 is 0.95, equal counts are 0.5.
    """
    a, b = 1 + wins_a, 1 + trials_a - wins_a
    c, d = 1 + wins_b, 1 + trials_b - wins_b

    def log_beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return sum(
        math.exp(log_beta(c + i, b + d) - log_beta(1 + i, b) - log_beta(c, d)) / (b + i)
        for i in range(a)
    )
