"""pairs: what a model should prefer to say, as groups of ranked candidates for one prompt.

Reads ``data/ingest/<corpus>`` (questions with answers, passages), an index, a generator; writes
``data/pairs/<entry>``: pref_groups.parquet, pref_candidates.parquet (the contract of
``stages.preference``, validated before they are written) and stats.json, which counts what was
dropped and why. The preference recipe of ``finetune`` trains on them, the aligner on those of
``chains``.

Every recipe is one file with ``build(params, inputs, tools, store) -> Built``. Its model calls go
through the loop engine and the record store: a killed run goes on where it was.

Reading order: answers.py (answers sampled with and without passages, scored by correctness),
chains.py (the next fact of a chain, among others; linking.py makes a chain by rule), sufficiency.py
(pools of evidence that answer their question or do not; evidence_pools.py makes them), thoughts.py
(thoughts that find and answers that read them; thought_groups.py has the rules), paths.py
(prefixes of passages that lead to the answer or away from it), __main__.py (the shell).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

RECIPES = {
    "answers": "answers",
    "chains": "chains",
    "sufficiency": "sufficiency",
    "thoughts": "thoughts",
    "paths": "paths",
}


class Inputs(NamedTuple):
    """What a recipe may read beside the tools; None where a slot says ``none``."""

    queries: "pa.Table"
    passages: "pa.Table"
    qrels: "pa.Table"
    triples: "pa.Table | None" = None
    run: "Path | None" = None  # of a serve entry: its answers and effects


class Built(NamedTuple):
    """What a recipe gives: two tables, counts for stats.json, measurements."""

    groups: "pa.Table"
    candidates: "pa.Table"
    stats: dict[str, Any]
    facts: dict[str, float]
