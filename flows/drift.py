"""How far a corpus has moved since the promotion, and whether that is worth a retraining.

Four looks at two versions of a corpus: which documents are new, removed or edited (by content
hash), how the distribution of words moved (Jensen-Shannon divergence), whether what arrived lies
elsewhere in the encoder's space than what was there (maximum mean discrepancy with a permutation
test), and how long ago the promotion was. Beside them, what ``dvc status`` says: code or values
changed. Each that passes its limit in ``retrain.drift`` is a reason to retrain; all are listed.

Deletions have a limit of their own that *stops* the retraining: a source that was half read looks
just like one from which documents were deleted (ingestion card, §6; ``max_delete_fraction``).

Pure: tables and arrays in, a ``Drift`` or a ``Verdict`` out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from stages.params import Entry
from stages.text import UNSPACED

Vectors = npt.NDArray[np.float32]
WORDS = 8  # that moved most, named in the report
FEWEST = 5  # arrivals; a test on fewer says nothing
SAME = 1e-12

_SIGNS = "".join(f"{chr(a)}-{chr(b)}" for a, b in UNSPACED)  # of scripts without spaces: each one
_WORD = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+")


class DriftPolicy(Entry):
    """``retrain.drift`` in params.yaml: from where on a change is worth a retraining."""

    changed: float = Field(0.01, ge=0)  # new, removed and edited documents / documents before
    deletions: float = Field(0.1, ge=0, le=1)  # removed / before; more of them stop the flow
    vocabulary: float = Field(0.05, ge=0, le=1)  # bits
    embedding: float = Field(0.01, ge=0, le=1)  # p below which arrivals lie elsewhere; 0: no test
    sample: int = Field(500, ge=2)  # vectors of each side
    permutations: int = Field(500, ge=1)
    days: int | None = Field(30, ge=0)  # since the promotion, if anything changed; null: never
    code: bool = True  # whether changed code is a reason
    values: bool = True  # whether changed values in params.yaml are
    seed: int = 13


class Changes(NamedTuple):
    """Documents by docid, each list sorted."""

    before: int  # how many documents there were
    now: int
    new: list[str]
    removed: list[str]
    edited: list[str]  # same docid, other content

    @property
    def share(self) -> float:
        """Changed documents / documents before; 1 where there were none."""
        changed = len(self.new) + len(self.removed) + len(self.edited)
        return changed / self.before if self.before else float(changed > 0)


class Shift(NamedTuple):
    """The words: divergence in bits, and which of them account for most of it."""

    divergence: float
    words: list[tuple[str, float, float]]  # word, its share before, its share now


class Discrepancy(NamedTuple):
    """The vectors: unbiased MMD² (may be below 0), and its p."""

    mmd2: float
    p: float


class Drift(NamedTuple):
    """One corpus against what it was at the promotion."""

    changes: Changes
    vocabulary: Shift
    embedding: Discrepancy | None  # None: no encoder, or too few arrivals


class Trigger(NamedTuple):
    """One thing that was looked at."""

    what: str  # documents, vocabulary ...
    where: str  # the corpus; empty where there is none
    fires: bool
    text: str


class Verdict(NamedTuple):
    """Whether to retrain. ``stopped`` says why not, whatever fires."""

    triggers: tuple[Trigger, ...]
    stopped: tuple[str, ...] = ()

    @property
    def worth(self) -> bool:
        return not self.stopped and any(t.fires for t in self.triggers)


# -- what moved ---------------------------------------------------------------------------


def changed_documents(before: pa.Table, now: pa.Table) -> Changes:
    """By docid and content hash of two ``documents`` tables. A moved document keeps both."""
    old, new = (
        dict(zip(t["docid"].to_pylist(), t["content_hash"].to_pylist(), strict=True))
        for t in (before, now)
    )
    return Changes(
        len(old),
        len(new),
        sorted(new.keys() - old.keys()),
        sorted(old.keys() - new.keys()),
        sorted(d for d in new.keys() & old.keys() if new[d] != old[d]),
    )


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Lower-cased words and how often each occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text.lower()))
    return counts


def vocabulary_shift(before: Mapping[str, int], now: Mapping[str, int]) -> Shift:
    """Jensen-Shannon divergence of two distributions of words, from 0 (equal) to 1 (disjoint).

    JS(P, Q) = (KL(P ‖ M) + KL(Q ‖ M)) / 2 with M = (P + Q) / 2 and logarithms to base 2.
    Nothing against nothing is 0, nothing against something 1.

    Lin, IEEE Transactions on Information Theory, 1991.
    """
    totals = sum(before.values()), sum(now.values())
    if not all(totals):
        return Shift(float(any(totals)), [])
    parts: dict[str, float] = {}
    for word in sorted(before.keys() | now.keys()):
        p, q = before.get(word, 0) / totals[0], now.get(word, 0) / totals[1]
        m = (p + q) / 2
        parts[word] = sum(x * math.log2(x / m) for x in (p, q) if x) / 2
    most = sorted(parts, key=lambda word: (-parts[word], word))[:WORDS]
    moved = [
        (w, before.get(w, 0) / totals[0], now.get(w, 0) / totals[1])
        for w in most
        if parts[w] > SAME
    ]
    return Shift(min(1.0, max(0.0, math.fsum(parts.values()))), moved)


def embedding_shift(before: Vectors, now: Vectors, *, permutations: int, seed: int) -> Discrepancy:
    """MMD² of two samples, (n, d) and (m, d), n and m at least 2, and its permutation p.

    Unbiased estimate with k(x, y) = exp(-‖x - y‖² / 2σ²), σ the median distance of the pooled
    sample. p is the share of random splits of the pooled sample that are at least as far apart,
    counting the observed one: never 0. O((n + m)²) memory.

    Gretton et al., A Kernel Two-Sample Test, JMLR 2012: eq. 3; median heuristic, §8.
    """
    n, m = len(before), len(now)
    pooled = np.concatenate([before, now]).astype(np.float64)
    squared = (pooled**2).sum(axis=1)
    distances = np.maximum(squared[:, None] + squared - 2 * pooled @ pooled.T, 0)
    apart = distances[np.triu_indices(n + m, 1)]
    sigma2 = float(np.median(np.sqrt(apart))) ** 2 or 1.0  # 0: most vectors are equal
    kernel = np.exp(-distances / (2 * sigma2))
    np.fill_diagonal(kernel, 0.0)  # a pair is two different vectors: unbiased

    rng = np.random.default_rng(seed)
    first = np.zeros((permutations + 1, n + m))
    first[0, :n] = 1
    for row in first[1:]:
        row[rng.permutation(n + m)[:n]] = 1
    inside = (first @ kernel * first).sum(axis=1)
    other = 1 - first
    outside = (other @ kernel * other).sum(axis=1)
    between = (first @ kernel * other).sum(axis=1)
    mmd2 = inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * between / (n * m)  # eq. 3
    p = (1 + np.sum(mmd2[1:] >= mmd2[0] - SAME)) / (1 + permutations)
    return Discrepancy(float(mmd2[0]), float(p))


# -- whether it is worth it ---------------------------------------------------------------


def sort_changes(status: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """What ``dvc status --json`` lists, by kind: code, values, inputs, outputs; each sorted.

    Code is a dep below ``stages`` or ``versions`` and a changed command; values are keys of
    params.yaml; inputs are other deps. A dep that another stage makes is in none: its own stage
    is listed, or nothing changed.
    """
    kinds: dict[str, set[str]] = {"code": set(), "values": set(), "inputs": set(), "outputs": set()}
    for stage, items in status.items():
        for item in items:
            if item == "changed command":
                kinds["code"].add(stage)
            if not isinstance(item, Mapping):
                continue
            kinds["outputs"] |= {*item.get("changed outs", ())}
            for dep, what in item.get("changed deps", {}).items():
                if isinstance(what, Mapping):
                    kinds["values"] |= {*what}
                elif dep.split("/")[0] in ("stages", "versions"):
                    kinds["code"].add(dep)
                else:
                    kinds["inputs"].add(dep)
    return {kind: sorted(names) for kind, names in kinds.items()}


def judge(
    policy: DriftPolicy,
    drifts: Mapping[str, Drift],
    changed: Mapping[str, Sequence[str]],
    *,
    days: float | None,
    forced: bool = False,
    damaged: int = 0,
) -> Verdict:
    """Whether to retrain, with everything that was looked at.

    ``drifts`` by corpus, ``changed`` as ``sort_changes`` gives it, ``days`` since the promotion
    (None: there was none, which is a reason). Time alone is none: what did not change would be
    made the same again. ``forced`` overrides the limit on deletions, too.
    ``damaged`` entries were taken out of the cache: what holds them has to be made again.
    """
    triggers, stopped = [], []
    if days is None:
        triggers.append(Trigger("promotion", "", True, "nothing was promoted yet"))
    for corpus, drift in drifts.items():
        triggers += _look(policy, corpus, drift)
        c = drift.changes
        if c.before and len(c.removed) / c.before > policy.deletions and not forced:
            stopped.append(
                f"{corpus}: {len(c.removed)} of {c.before} documents are gone, more than "
                f"retrain.drift.deletions = {policy.deletions:g}. Look whether the source was "
                f"read to its end; if they are meant to go: python -m flows.retrain --force"
            )
    for kind, counts in (("code", policy.code), ("values", policy.values)):
        if names := changed.get(kind, ()):
            triggers.append(Trigger(kind, "", counts, _few(names)))
    if days is not None and policy.days is not None:
        is_old = days >= policy.days
        moved = any(changed.values()) or any(d.changes.share for d in drifts.values())
        text = f"promoted {days:.1f} days ago, limit {policy.days}"
        triggers.append(Trigger("age", "", is_old and moved, text))
    if damaged:
        triggers.append(Trigger("cache", "", True, f"{damaged} damaged entries were removed"))
    if forced:
        triggers.append(Trigger("forced", "", True, "asked for"))
    return Verdict(tuple(triggers), tuple(stopped))


def _look(policy: DriftPolicy, corpus: str, drift: Drift) -> list[Trigger]:
    c, shift, found = drift
    counts = f"{len(c.new)} new, {len(c.removed)} removed, {len(c.edited)} edited of {c.before}"
    triggers = [
        Trigger(
            "documents", corpus, c.share > 0 and c.share >= policy.changed,
            f"{counts}: {c.share:.4f}, limit {policy.changed:g}",
        ),
        Trigger(
            "vocabulary", corpus, shift.divergence > 0 and shift.divergence >= policy.vocabulary,
            f"Jensen-Shannon {shift.divergence:.4f} bits, limit {policy.vocabulary:g}",
        ),
    ]  # fmt: skip
    if found is not None:
        text = f"MMD² {found.mmd2:.5f}, p = {found.p:.4f}, limit {policy.embedding:g}"
        triggers.append(Trigger("embedding", corpus, found.p < policy.embedding, text))
    return triggers


def _few(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
