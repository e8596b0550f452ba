"""Pools of evidence with labels, and what a judge's scores of them are worth."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages import judge as judges
from stages.errors import QuarryError
from stages.finetune import calibration as cal
from stages.judge import Encoded, JudgeNet, Reader
from stages.preference import read_groups
from stages.tables import read_table

SAME_LENGTH = ("full+distractors", "replaced")  # sources of equally many items


class Pool(NamedTuple):
    """One pool of a question: what the judge reads, and what is known of it."""

    qid: str
    split: str
    question: str
    text: str
    label: int  # 1 sufficient, -1 not, 0 not to be trained on
    source: str
    round: int
    f1: float


def read_pools(folder: Path) -> list[Pool]:
    """The pools of an entry of pairs, in the tables' order.

    Raises:
        QuarryError: another recipe made it.
    """
    rows = read_table(folder, "pref_groups")
    groups = read_groups(rows, read_table(folder, "pref_candidates"))
    pools = []
    for row, group in zip(rows.to_pylist(), groups, strict=True):
        if row["kind"] != "sufficiency":
            raise QuarryError(
                f"{folder}: group of kind {row['kind']}; a judge trains on recipe sufficiency."
            )
        about = json.loads(row["meta"])["pools"]
        for c in group.candidates:
            source, n_round, f1 = about[c.cand_id]
            pools.append(Pool(
                row["qid"], row["split"], group.prompt, c.text, c.label, source, n_round, f1
            ))  # fmt: skip
    return pools


def measure(
    net: JudgeNet, reader: Reader, dev: Sequence[Pool], *, price: float, seed: int, fit: bool
) -> dict[str, Any]:
    """What the net's scores are worth on dev; with ``fit`` also temperature, tau and its curve."""
    raw = judges.logits(net, encode_pools(reader, dev), reader.pad)
    bare = [(p.question, judges.without_features(p.text)) for p in dev]
    by_text = judges.logits(net, reader.encode(bare), reader.pad)
    temperature = cal.fit_temperature(*labelled(raw, dev)) if fit else 1.0
    p = cal.sigmoid(raw / temperature).astype(np.float32)
    tau, curve = cal.best_threshold(rounds_of(p, dev), price=price)
    scores, labels = labelled(p, dev)
    qids = [d.qid for d in dev if d.label]
    pairs = [(s, d) for s, d in zip(p, dev, strict=True) if d.source in SAME_LENGTH and d.label]
    bare_pairs = [
        (s, d) for s, d in zip(by_text, dev, strict=True) if d.source in SAME_LENGTH and d.label
    ]
    kappas = [judges.read_features(d.text)[0][0] for d in dev if d.label]
    found = {
        "n": len(labels), "questions": len(set(qids)), "sufficient": sum(y > 0 for y in labels),
        "auc": cal.auc(scores, labels),
        "auc_interval": cal.auc_interval(scores, labels, qids, seed=seed),
        "auc_by_text": cal.auc(*labelled(by_text, dev)),
        "auc_same_length": cal.auc([s for s, _ in pairs], [d.label for _, d in pairs]),
        "auc_same_length_by_text": cal.auc(
            [s for s, _ in bare_pairs], [d.label for _, d in bare_pairs]
        ),
        "auc_of_coverage": cal.auc(kappas, labels),
        "ece": cal.calibration_error(scores, labels),
        "false_stop_rate": cal.false_stops(scores, labels, tau),
        "questions_with_rounds": len(rounds_of(p, dev)),
    }  # fmt: skip
    if fit:
        found |= {"temperature": temperature, "tau": tau, "curve": curve}
    return {k: _rounded(v) for k, v in found.items()}


def rounds_of(p: Sequence[float], pools: Sequence[Pool]) -> list[cal.Rounds]:
    """Scores and F1 of the loop's own pools, by question and round."""
    by_qid: dict[str, list[tuple[int, float, float]]] = {}
    for score, pool in zip(p, pools, strict=True):
        if pool.source == "self":
            by_qid.setdefault(pool.qid, []).append((pool.round, float(score), pool.f1))
    return [
        cal.Rounds([s for _, s, _ in sorted(of_one)], [f for *_, f in sorted(of_one)])
        for of_one in by_qid.values()
    ]


def encode_pools(reader: Reader, dev: Sequence[Pool]) -> list[Encoded]:
    """Pools as the net reads them."""
    return reader.encode([(p.question, p.text) for p in dev])


def labelled(scores: Sequence[float], pools: Sequence[Pool]) -> tuple[list[float], list[int]]:
    """Scores and labels of the pools that have a label."""
    kept = [(float(s), p.label) for s, p in zip(scores, pools, strict=True) if p.label]
    return [s for s, _ in kept], [y for _, y in kept]


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value
