"""Systems of a corpus on one split: quality with intervals, tests, and cost.

A figure is a mean over questions and stands beside their number ``n``: for rankings, the
judged questions that the system was asked; for answers, those with gold answers. A system is
compared with the baseline on the questions that both have a value for; p values are adjusted
(Holm) over the systems, measure by measure. A figure that a corpus or a system cannot have (no
judgements, no gold answers, nothing retrieved) is absent, never 0.

Which systems those are stands in the entry: they are the family of the tests, and a result that
depended on what else lies in a folder would depend on its history.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from stages.evaluate.answering import has_answers, measure_answers, support_recall
from stages.evaluate.ranking import measure_run, parse_measure
from stages.evaluate.rounds import count_consumed, count_stops, round_rows, support_by_round
from stages.evaluate.statistics import bootstrap_test, holm, interval, permutation_test
from stages.params import Entry
from stages.runs import rank_rows
from stages.splits import of_split
from stages.tables import table

log = logging.getLogger(__name__)

DEPTHS = (1, 2, 3, 5, 10, 20, 50, 100)  # of the recall curve
NONE = "none"  # of a slot

PerQuestion = Mapping[str, float]  # qid -> value
PerMeasure = dict[str, PerQuestion]


class Params(Entry):
    """An entry of ``evaluate`` with ``suite: standard``."""

    suite: Literal["standard"]
    corpus: str  # whose questions, judgements and runs
    fused: str  # corpus whose fused runs are named, or none
    split: str  # of the questions; "all" takes every one
    runs: list[str] = Field(min_length=1)  # the systems: entries of serve over corpus, of fuse
    baseline: str  # what the others are compared with, takes part itself; or none
    measures: list[str] = Field(["nDCG@10", "R@100"], min_length=1)  # of rankings
    resamples: int = Field(2000, ge=100)  # of the bootstrap and of the permutation test
    seed: int = 13  # of the resampling

    @field_validator("measures")
    @classmethod
    def _known(cls, measures: list[str]) -> list[str]:
        for name in measures:
            parse_measure(name)
        return measures


class Collection(NamedTuple):
    """What ``ingest`` made of a corpus."""

    documents: pa.Table
    passages: pa.Table
    queries: pa.Table
    qrels: pa.Table


class System(NamedTuple):
    """What a system found, and what it answered if it answers at all."""

    name: str
    run: pa.Table
    answers: pa.Table | None
    effects: pa.Table | None = None  # what it asked for, where that was logged
    max_docs: int | None = None  # its budget of passages


class Evaluation(NamedTuple):
    """The files of this suite."""

    metrics: dict[str, dict[str, float]]  # system -> measure -> mean, and counts and cost
    per_query: pa.Table
    comparisons: dict[str, Any]  # figures with intervals; tests; how questions ended
    recall: list[dict[str, Any]]  # rows of the plot recall against k
    cost: list[dict[str, Any]]  # rows of the plot quality against tokens
    rounds: list[dict[str, Any]]  # rows of the plot support found against rounds


def evaluate(
    collection: Collection,
    systems: Sequence[System],
    *,
    split: str,
    baseline: str,
    measures: Sequence[str],
    resamples: int = 2000,
    seed: int = 13,
) -> Evaluation:
    """All figures of all systems; without systems everything is empty.

    Raises:
        QuarryError: the corpus has questions, but no such split.
    """
    queries = of_split(collection.queries, split)
    qrels = live_qrels(collection)
    itself = own_documents(queries, collection.documents)
    relevant = relevant_documents(qrels)

    values: dict[str, PerMeasure] = {}
    recall: list[dict[str, Any]] = []
    curves: dict[str, list[float]] = {}
    for system in systems:
        qids = asked(system, queries)
        curve = {f"R@{k}": k for k in DEPTHS}
        wanted = list(dict.fromkeys([*measures, *curve]))
        of_run = measure_ranking(drop_hits(system.run, itself), qrels, qids, wanted)
        recall += [
            {"system": system.name, "k": k, "recall": _mean(of_run[name])}
            for name, k in curve.items()
            if of_run.get(name)
        ]
        found = {m: of_run[m] for m in measures if m in of_run}
        values[system.name] = found | measure_texts(system, qids, queries, relevant)
        if system.effects is not None:
            curves[system.name] = support_by_round(system.effects, relevant, qids, system.max_docs)

    metrics = {
        s.name: {m: _mean(v) for m, v in values[s.name].items()} | count_costs(s, queries)
        for s in systems
    }
    draw = {"resamples": resamples, "seed": seed}
    return Evaluation(
        metrics=metrics,
        per_query=table("per_query", _rows(values)),
        comparisons={
            "figures": figures(values, **draw),
            "comparisons": compare(values, baseline, **draw) if baseline != NONE else [],
            "stops": {s.name: count_stops(s.answers) for s in systems if s.answers is not None},
        },
        recall=recall,
        cost=cost_rows(metrics, measures[0]),
        rounds=round_rows(curves),
    )


def live_qrels(collection: Collection) -> pa.Table:
    """Judgements of documents that can be found.

    A duplicate that was left out of the passages (``dedup: drop``) can only be found as its
    representative, which inherits its judgement; of several the highest counts. Where
    duplicates are only marked they are found as themselves, and published figures keep.
    """
    documents, qrels = collection.documents, collection.qrels
    gone = pc.and_(
        pc.not_equal(documents["dup_of"], ""),
        pc.invert(pc.is_in(documents["docid"], collection.passages["parent"].unique())),
    )
    if not pc.any(gone).as_py():
        return qrels
    instead = documents.filter(gone).select(["docid", "dup_of"]).to_pydict()
    stands_for = dict(zip(instead["docid"], instead["dup_of"], strict=True))
    docid = pa.array([stands_for.get(d, d) for d in qrels["docid"].to_pylist()], pa.string())
    best = (
        qrels.set_column(1, "docid", docid).group_by(["qid", "docid"]).aggregate([("rel", "max")])
    )
    return best.rename_columns(["qid", "docid", "rel"]).cast(qrels.schema)


def own_documents(queries: pa.Table, documents: pa.Table) -> list[str]:
    """Queries that are documents of the corpus themselves: same id, same text.

    As in ArguAna and Quora of BEIR, where a query finds itself first. The text is compared
    since ids alone say nothing: query 1 and document 1 are mostly strangers.
    """
    asked_text = dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True))
    same_id = documents.filter(pc.is_in(documents["docid"], queries["qid"].combine_chunks()))
    return [
        d["docid"]
        for d in same_id.select(["docid", "title", "text"]).to_pylist()
        if _squash(asked_text[d["docid"]])
        in (_squash(d["text"]), _squash(f"{d['title']} {d['text']}"))
    ]


def _squash(text: str) -> str:
    return " ".join(text.casefold().split())


def drop_hits(run: pa.Table, itself: Sequence[str]) -> pa.Table:
    """The run without the hits in which a query finds itself, ranked anew."""
    if not itself:
        return run
    own = pc.and_(
        pc.equal(run["qid"], run["docid"]), pc.is_in(run["qid"], pa.array(itself, pa.string()))
    )
    run = run.filter(pc.invert(own)).combine_chunks()
    qid, docid = (run[c].combine_chunks() for c in ("qid", "docid"))
    return rank_rows(qid, docid, run["score"].to_numpy())


def asked(system: System, queries: pa.Table) -> list[str]:
    """The questions of the split that the system was asked.

    Those in its answers; a system that only ranks was asked all of them, hits or not.
    """
    qids = queries["qid"].to_pylist()
    if system.answers is None:
        return qids
    answered = set(system.answers["qid"].to_pylist())
    return [q for q in qids if q in answered]


def measure_ranking(
    run: pa.Table, qrels: pa.Table, qids: Sequence[str], measures: Sequence[str]
) -> PerMeasure:
    """Ranking measures over the judged questions among ``qids``; nothing for an empty run."""
    with_qrels = set(qrels["qid"].unique().to_pylist())
    qids = [q for q in qids if q in with_qrels]
    if run.num_rows == 0 or not qids:
        return {}
    values = measure_run(run, qrels, qids, measures).tolist()
    return {m: dict(zip(qids, v, strict=True)) for m, v in zip(measures, values, strict=True)}


def relevant_documents(qrels: pa.Table) -> dict[str, set[str]]:
    """The documents judged relevant, by question."""
    relevant: dict[str, set[str]] = {}
    judged = qrels.filter(pc.greater(qrels["rel"], 0)).to_pydict()
    for qid, docid in zip(judged["qid"], judged["docid"], strict=True):
        relevant.setdefault(qid, set()).add(docid)
    return relevant


def measure_texts(
    system: System, qids: Sequence[str], queries: pa.Table, relevant: Mapping[str, set[str]]
) -> PerMeasure:
    """EM, F1, item recall and support recall over the questions asked; those there are."""
    if system.answers is None:
        return {}
    answers = system.answers.filter(pc.is_in(system.answers["qid"], pa.array(qids, pa.string())))
    values = {**measure_answers(answers, queries), "SupportR": support_recall(answers, relevant)}
    return {m: v for m, v in values.items() if v}


def count_costs(system: System, queries: pa.Table) -> dict[str, float]:
    """How many questions were asked, and what one cost; ``failed`` of a system that answers.

    ``tokens`` are all that the generator read and wrote, ``walked`` those of them that it read as
    the retriever. ``rounds`` have a search in them and ``docs`` are different passages: of a
    system that logged what it asked.
    """
    qids = asked(system, queries)
    if system.answers is None or not qids:
        return {"n": len(qids)}
    rows = system.answers.filter(pc.is_in(system.answers["qid"], pa.array(qids, pa.string())))
    tokens = pc.sum(pc.add(rows["tokens_in"], rows["tokens_out"])).as_py()
    costs = {
        "n": len(qids),
        "tokens": round(tokens / len(qids), 6),
        "llm_calls": round(pc.sum(rows["llm_calls"]).as_py() / len(qids), 6),
    }
    if system.effects is not None:
        costs["rounds"] = round(pc.sum(rows["rounds"]).as_py() / len(qids), 6)
        costs |= count_consumed(system.effects, qids, system.max_docs)
    if has_answers(rows):
        costs["failed"] = pc.sum(pc.not_equal(rows["error"], "")).as_py()
    return costs


def figures(values: Mapping[str, PerMeasure], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Each mean with its 95 % bootstrap interval and the number of questions behind it."""
    rows = []
    for system, of_system in values.items():
        for measure, v in of_system.items():
            low, high = interval(_array(v), resamples=resamples, seed=seed)
            rows.append(
                {"system": system, "measure": measure, "n": len(v), "value": _mean(v)}
                | {"low": round(low, 6), "high": round(high, 6)}
            )
    return rows


def compare(
    values: Mapping[str, PerMeasure], baseline: str, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Each system against the baseline on common questions: difference, interval, two tests."""
    rows = []
    for measure, of_baseline in values.get(baseline, {}).items():
        family = []
        for system, of_system in values.items():
            both = sorted(of_system.get(measure, {}).keys() & of_baseline.keys())
            if system == baseline or not both:
                continue
            difference = np.array([of_system[measure][q] - of_baseline[q] for q in both])
            draw = {"resamples": resamples, "seed": seed}
            low, high = interval(difference, **draw)
            family.append(
                {"system": system, "baseline": baseline, "measure": measure, "n": len(both)}
                | {"difference": round(float(difference.mean()), 6)}
                | {"low": round(low, 6), "high": round(high, 6)}
                | {"p_bootstrap": bootstrap_test(difference, **draw)}
                | {"p_permutation": permutation_test(difference, **draw)}
            )
        for test in ("p_bootstrap", "p_permutation"):
            for row, p in zip(family, holm([r[test] for r in family]), strict=True):
                row[test], row[f"{test}_holm"] = round(row[test], 6), round(p, 6)
        rows += family
    return rows


def cost_rows(metrics: Mapping[str, Mapping[str, float]], ranking: str) -> list[dict[str, Any]]:
    """Quality beside tokens per question: of the answers where any system answers, else of
    the ranking. A system without a language model costs no tokens."""
    there = {m for of_system in metrics.values() for m in of_system}
    quality = next((m for m in ("F1", "ItemR") if m in there), ranking)
    return [
        {"system": system, "tokens": m.get("tokens", 0.0), "quality": m[quality]}
        | {"measure": quality}
        for system, m in metrics.items()
        if quality in m
    ]


def _rows(values: Mapping[str, PerMeasure]) -> list[dict[str, Any]]:
    return [
        {"system": system, "measure": measure, "qid": qid, "value": value}
        for system, of_system in values.items()
        for measure, v in of_system.items()
        for qid, value in v.items()
    ]


def _array(values: PerQuestion) -> npt.NDArray[np.float64]:
    """In the order of the qids: the same question is drawn at the same place in all systems."""
    return np.array([values[q] for q in sorted(values)])


def _mean(values: PerQuestion) -> float:
    return round(float(_array(values).mean()), 6)
