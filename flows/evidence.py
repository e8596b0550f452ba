"""What two revisions show: documents for the drift, measures for the gate."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from flows.drift import (
    FEWEST,
    Changes,
    Discrepancy,
    Drift,
    DriftPolicy,
    changed_documents,
    count_words,
    embedding_shift,
    vocabulary_shift,
)
from flows.gate import Evidence, GatePolicy, query_set
from stages.digest import uniform
from stages.errors import QuarryError
from stages.splits import of_split
from stages.tables import has_table, read_table


def read_drifts(
    promoted: Path,
    candidate: Path,
    corpora: Collection[str],
    policy: DriftPolicy,
    encoders: Mapping[str, str],
    indexes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Drift]:
    """The drift of each corpus that has other documents now, in the given order.

    ``encoders`` says which model directory of the promoted revision the vectors come from. Of
    ``indexes``, the entries of ``index``, one with that encoder over the corpus says how it reads:
    what was there is in the record store then, and what arrived will be for the index.
    """
    drifts = {}
    for corpus in corpora:
        old, new = (folder / "data/ingest" / corpus for folder in (promoted, candidate))
        if not has_table(new, "documents"):
            continue  # its stage failed or was not made; the build says so
        after = read_table(new, "documents")
        is_known = has_table(old, "documents")
        before = read_table(old, "documents") if is_known else after.slice(0, 0)
        changes = changed_documents(before, after)
        if not changes.share:
            continue
        words = vocabulary_shift(*map(count_words, (_texts(before), _texts(after))))
        found = None
        if is_known and corpus in encoders and policy.embedding:
            model = promoted / "data/finetune" / encoders[corpus]
            reads = _reading(corpus, model.name, indexes)
            found = _embedding(old, new, changes, model, policy, reads)
        drifts[corpus] = Drift(changes, words, found)
    return drifts


def _texts(documents: pa.Table) -> list[str]:
    columns = (documents[c].to_pylist() for c in ("title", "text"))
    return [f"{title} {text}" for title, text in zip(*columns, strict=True)]


def _reading(corpus: str, encoder: str, indexes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How an index with this encoder over the corpus reads, if there is any."""
    for entry in indexes.values():
        if (entry["corpus"], entry["model"]) == (corpus, encoder):
            return {name: entry[name] for name in ("max_tokens", "threads") if name in entry}
    return {}


def _embedding(
    old: Path, new: Path, changes: Changes, model: Path, policy: DriftPolicy, reads: dict[str, int]
) -> Discrepancy | None:
    """What arrived against what was there and stayed. Two samples that share documents would not
    be exchangeable, which is what the permutation test asks."""  # fmt: skip
    arrived = _sample(new, {*changes.new, *changes.edited}, policy.sample)
    gone = {*changes.removed, *changes.edited}
    stayed = _sample(
        old, {*read_table(old, "documents")["docid"].to_pylist()} - gone, policy.sample
    )
    if min(len(arrived), len(stayed)) < FEWEST:
        return None
    from stages.encoder import embed, open_encoder  # torch
    from stages.records import RecordStore

    with RecordStore() as store:
        encoder = open_encoder(model, **reads)
        sides = [embed(encoder, *zip(*side, strict=True), store) for side in (stayed, arrived)]
    return embedding_shift(
        *map(np.asarray, sides), permutations=policy.permutations, seed=policy.seed
    )


def _sample(corpus: Path, docids: Collection[str], n: int) -> list[tuple[str, str]]:
    """(docid, text) of the first passages of n documents, those of smallest hash."""
    chosen = sorted(docids, key=lambda d: (uniform(d), d))[:n]
    passages = read_table(corpus, "passages")
    first = pc.and_(
        pc.equal(passages["seq"], 0), pc.is_in(passages["parent"], pa.array(chosen, pa.string()))
    )
    return [
        (row["docid"], f"{row['title']} {row['text']}" if row["title"] else row["text"])
        for row in passages.filter(first).select(["docid", "title", "text"]).to_pylist()
    ]


def read_evidence(
    folder: Path, policy: GatePolicy, evaluations: Mapping[str, Mapping[str, Any]]
) -> dict[str, Evidence]:
    """What a checkout's evaluations say, for those that the gate names and that were made there.

    ``evaluations`` are the entries of ``evaluate``.

    Raises:
        QuarryError: the gate names an evaluation that is no entry.
    """
    found = {}
    for name in policy.primary:
        if name not in evaluations:
            raise QuarryError(
                f"retrain.gate.primary.{name}: no such entry of evaluate. "
                f"There are: {', '.join(evaluations)}."
            )
        made = folder / "data/evaluate" / name
        corpus = folder / "data/ingest" / evaluations[name]["corpus"]
        if (made / "metrics.json").is_file() and (made / "per_query.parquet").is_file():
            metrics = json.loads((made / "metrics.json").read_text(encoding="utf-8"))
            queries = query_set(read_table(corpus, "queries"))
            found[name] = Evidence(queries, read_table(made, "per_query"), metrics)
    return found


def find_same(promoted: Path, candidate: Path, stages: Mapping[str, Collection[str]]) -> set[str]:
    """The names whose stages have equal entries in both checkouts' ``dvc.lock``.

    An entry holds the hashes of code, values, inputs and outputs: of the serving stages too, since
    equal answers may come from a slower index.
    """
    old, new = (
        yaml.load((folder / "dvc.lock").read_bytes(), Loader=yaml.CSafeLoader)["stages"]
        for folder in (promoted, candidate)
    )
    return {
        name
        for name, wanted in stages.items()
        if all(stage in old and old[stage] == new.get(stage) for stage in wanted)
    }


def pick_texts(folder: Path, evaluation: Mapping[str, Any], n: int) -> list[str]:
    """n questions of an evaluation, those of smallest hash of the qid."""
    queries = read_table(folder / "data/ingest" / evaluation["corpus"], "queries")
    rows = of_split(queries, evaluation["split"]).select(["qid", "text"]).to_pylist()
    rows.sort(key=lambda row: (uniform(row["qid"]), row["qid"]))
    return [row["text"] for row in rows[:n]]
