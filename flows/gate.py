"""Whether a candidate may take the promoted revision's place, and every reason for and against.

Both revisions answered the same questions, corpus by corpus. The primary measure must be
*non-inferior*: H0 "the mean difference is -margin or less" is rejected, corpora adjusted by Holm.
That says more than "no significant loss", which little data always gives. Beside it stand hard
guards, each on its own: no measure falls (or, for a rate of harm, rises) by more than allowed, the
share of malformed outputs and the 95th percentile of latency stay in bounds. One guard refuses
whatever the primary measure says.

Pure: tables and numbers in, a ``Decision`` out. Non-inferiority by the paired bootstrap: Efron &
Tibshirani, An Introduction to the Bootstrap, 1993, §16.4, shifted to the margin; Holm,
Scandinavian Journal of Statistics, 1979. That equal values on every question need no test, and
are no member of Holm's family, is ours.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from stages.digest import digest
from stages.evaluate.statistics import SAME, bootstrap_means, holm
from stages.params import Entry
from stages.tables import sort_table

Values = npt.NDArray[np.float64]
PERCENTILE = 95  # of the latency


class Primary(Entry):
    """What is promoted for a corpus, and the measure that decides."""

    system: str  # an entry of serve or fuse that the evaluation names
    measure: str = "nDCG@10"


class Guard(Entry):
    """How far the mean of a measure may move; exactly one of the two."""

    drop: float | None = Field(None, ge=0)  # of a measure whose larger values are better
    rise: float | None = Field(None, ge=0)  # of one whose smaller values are better

    @model_validator(mode="after")
    def _one(self) -> "Guard":
        if (self.drop is None) == (self.rise is None):
            raise ValueError("give one of 'drop' and 'rise'")
        return self


class GatePolicy(Entry):
    """``retrain.gate`` in params.yaml."""

    primary: dict[str, Primary] = Field(min_length=1)  # by entry of evaluate
    margin: float = Field(0.02, ge=0)  # a smaller loss of the primary measure is none
    alpha: float = Field(0.05, gt=0, lt=1)  # family-wise, over the corpora
    resamples: int = Field(2000, ge=100)
    seed: int = 13
    guards: dict[str, Guard] = Field({})  # by measure; where the promoted revision has it
    malformed: float = Field(0.01, ge=0)  # rise of the share of outputs that failed
    latency: float | None = Field(1.25, gt=0)  # p95, candidate / promoted; null: not looked at


class Evidence(NamedTuple):
    """What one revision showed on one corpus."""

    queries: str  # ``query_set`` of its questions
    per_query: pa.Table
    metrics: Mapping[str, Mapping[str, float]]  # system -> measure -> mean, and counts


class Latency(NamedTuple):
    """Seconds of the same questions, asked of both revisions in turn, each (samples,)."""

    promoted: Values
    candidate: Values


class Reason(NamedTuple):
    """One thing that was looked at. Numbers are None where there are none."""

    corpus: str
    check: str
    passed: bool
    text: str
    promoted: float | None = None
    candidate: float | None = None
    limit: float | None = None  # of the candidate's value; of p for the primary measure
    p: float | None = None  # adjusted


class Decision(NamedTuple):
    """Accepted if nothing refuses; ``reasons`` are all that were looked at, in order."""

    reasons: tuple[Reason, ...]

    @property
    def refusals(self) -> list[Reason]:
        return [reason for reason in self.reasons if not reason.passed]

    @property
    def accepted(self) -> bool:
        return not self.refusals


def query_set(queries: pa.Table) -> str:
    """The hash of the questions: id, text, gold answers and options; their order is the table's."""
    rows = sort_table(queries, "queries").select(["qid", "text", "answers", "options"])
    fields = [str(rows.num_rows)]
    for row in rows.to_pylist():
        fields += [row["qid"], row["text"]]
        for column in ("answers", "options"):
            fields += [str(len(row[column] or ())), *(row[column] or ())]
    return digest(*fields)


def decide(
    promoted: Mapping[str, Evidence] | None,
    candidate: Mapping[str, Evidence],
    policy: GatePolicy,
    latency: Mapping[str, Latency],
    same: Collection[str] = (),
) -> Decision:
    """The decision over the corpora that the policy names, in its order.

    Corpora in ``same`` were made from the same inputs by the same code: there is nothing to look
    at. ``promoted`` is None before the first promotion: the candidate need only be there then. So
    it is for a corpus that the promoted revision does not have.
    """
    reasons: list[Reason] = []
    tested: dict[str, float] = {}  # place in reasons -> p
    for corpus, primary in policy.primary.items():
        if corpus in same:
            text = "nothing that it is made from has changed"
            reasons.append(Reason(corpus, "evaluation", True, text))
            continue
        new = candidate.get(corpus)
        if new is None or primary.system not in new.metrics:
            text = f"the candidate has no evaluation of {primary.system}"
            reasons.append(Reason(corpus, "evaluation", False, text))
            continue
        old = (promoted or {}).get(corpus)
        if old is None or primary.system not in old.metrics:
            text = f"{primary.system} has not been promoted before: nothing to compare with"
            reasons.append(Reason(corpus, "evaluation", True, text))
            continue
        if old.queries != new.queries:
            text = (
                f"other questions ({old.queries[:12]} -> {new.queries[:12]}): the two cannot be "
                f"compared. Promote by hand once: python -m flows.promote promote"
            )
            reasons.append(Reason(corpus, "questions", False, text))
            continue
        reason, p = _primary(corpus, primary, old, new, policy)
        if p is not None:
            tested[str(len(reasons))] = p
        reasons.append(reason)
        means = old.metrics[primary.system], new.metrics[primary.system]
        reasons += _guards(corpus, *means, policy)
        reasons.append(_malformed(corpus, *means, policy))
        if policy.latency is not None:
            reasons.append(_latency(corpus, latency.get(corpus), policy.latency))
    for place, p in zip(tested, holm(list(tested.values())), strict=True):
        reasons[int(place)] = _judge(reasons[int(place)], p, policy)
    return Decision(tuple(reasons))


def noninferiority_test(difference: Values, *, margin: float, resamples: int, seed: int) -> float:
    """One-sided p that the mean of (candidate - promoted) is -margin or less.

    The differences are shifted to mean -margin; p is the share of resamples whose mean is then as
    large as the one observed, counting the observation itself: never 0.
    """
    observed = difference.mean()
    means = bootstrap_means(difference - observed, resamples=resamples, seed=seed)
    return float((1 + np.sum(means - margin >= observed - SAME)) / (1 + resamples))


def _primary(
    corpus: str, primary: Primary, old: Evidence, new: Evidence, policy: GatePolicy
) -> tuple[Reason, float | None]:
    """The reason, to be judged when all p values are known, and p; None where none is needed."""
    check = f"{primary.measure} of {primary.system}"
    before, after = (_values(e.per_query, primary.system, primary.measure) for e in (old, new))
    if not before:
        return Reason(corpus, check, True, "not measured for the promoted revision"), None
    if before.keys() != after.keys():
        lost, more = len(before.keys() - after.keys()), len(after.keys() - before.keys())
        text = f"not the same questions have a value: {lost} lost, {more} more"
        return Reason(corpus, check, False, text), None
    difference = np.array([after[qid] - before[qid] for qid in sorted(before)])
    means = float(np.mean([*before.values()])), float(np.mean([*after.values()]))
    if np.abs(difference).max() <= SAME:
        text = f"equal on all {len(difference)} questions"
        return Reason(corpus, check, True, text, *means), None
    p = noninferiority_test(
        difference, margin=policy.margin, resamples=policy.resamples, seed=policy.seed
    )
    text = f"mean difference {difference.mean():+.4f} on n={len(difference)} questions"
    return Reason(corpus, check, True, text, *means), p


def _judge(reason: Reason, p: float, policy: GatePolicy) -> Reason:
    passed = p < policy.alpha
    verdict = "not inferior" if passed else "not shown to be non-inferior"
    text = f"{verdict} by the margin {policy.margin:g}: {reason.text}"
    return reason._replace(passed=passed, text=text, limit=policy.alpha, p=p)


def _values(per_query: pa.Table, system: str, measure: str) -> dict[str, float]:
    is_wanted = pc.and_(
        pc.equal(per_query["system"], system), pc.equal(per_query["measure"], measure)
    )
    rows = per_query.filter(is_wanted)
    return dict(zip(rows["qid"].to_pylist(), rows["value"].to_pylist(), strict=True))


def _guards(
    corpus: str, old: Mapping[str, float], new: Mapping[str, float], policy: GatePolicy
) -> list[Reason]:
    reasons = []
    for measure, guard in policy.guards.items():
        if measure not in old:
            continue
        if measure not in new:
            text = "the candidate's was not measured"
            reasons.append(Reason(corpus, measure, False, text, old[measure]))
            continue
        if guard.drop is not None:
            limit, kind = old[measure] - guard.drop, f"may drop by {guard.drop:g}"
            passed = new[measure] >= limit - SAME
        else:
            limit, kind = old[measure] + guard.rise, f"may rise by {guard.rise:g}"
            passed = new[measure] <= limit + SAME
        reasons.append(Reason(corpus, measure, passed, kind, old[measure], new[measure], limit))
    return reasons


def _malformed(
    corpus: str, old: Mapping[str, float], new: Mapping[str, float], policy: GatePolicy
) -> Reason:
    """The share of outputs that failed; a system that only ranks has none."""
    shares = [m.get("failed", 0) / m["n"] if m.get("n") else 0.0 for m in (old, new)]
    limit = shares[0] + policy.malformed
    text = f"share of outputs that failed; may rise by {policy.malformed:g}"
    return Reason(corpus, "malformed", shares[1] <= limit + SAME, text, *shares, limit)


def _latency(corpus: str, samples: Latency | None, ratio: float) -> Reason:
    if samples is None or not len(samples.promoted) or not len(samples.candidate):
        return Reason(corpus, "latency", False, "p95 was not measured")
    old, new = (float(np.percentile(side, PERCENTILE)) for side in samples)
    text = f"p95 in seconds of {len(samples.candidate)} questions asked in turn; {ratio:g} times"
    return Reason(corpus, "latency", new <= old * ratio, text, old, new, old * ratio)
