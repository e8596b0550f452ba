"""Measure the systems of an entry of 'evaluate' in params.yaml and compare them."""

from pathlib import Path

import pyarrow as pa

from stages import evaluate, params, shell, tables
from stages.errors import QuarryError
from stages.evaluate import SUITES
from stages.params import Entry
from stages.shell import NONE, Task


def find_systems(task: Task, values: Entry) -> dict[str, Path]:
    """The folder of each system that takes part, by name: runs of serve, then of fuse."""
    slots = [("serve", "runs", values.corpus), ("fuse", "fused", values.fused)]
    folders = []
    for room, *slot in slots:
        if slot[1] == NONE:
            continue
        folders.append(task.folder(*slot))
        if not folders[-1].is_dir():
            raise QuarryError(
                f"evaluate.{task.entry}: {folders[-1]} is missing. Make it with: dvc repro {room}"
            )
    found: dict[str, Path] = {}
    for path in (p.parent for f in folders for p in sorted(f.glob("[!.]*/runs.parquet"))):
        if path.name in found:
            raise QuarryError(
                f"evaluate.{task.entry}: {found[path.name]} and {path} have the same name. "
                f"Rename one of the two entries in params.yaml."
            )
        found[path.name] = path
    named = {"runs": values.runs or [], "baseline": [values.baseline]}
    for key, names in named.items():
        for name in names:
            if name not in found and name != NONE:
                raise QuarryError(
                    f"evaluate.{task.entry}.{key}: no run '{name}' in "
                    f"{' or '.join(map(str, folders))}; there are: {', '.join(found) or 'none'}. "
                    f"Make it with: dvc repro serve@{name} (or fuse@{name})"
                )
    keep = {*named["runs"], *named["baseline"]} if values.runs is not None else set(found)
    return {name: path for name, path in found.items() if name in keep}


def read_answers(folder: Path) -> pa.Table | None:
    """What a system answered and cost, None where it kept no account."""
    if not (folder / "answers.parquet").exists():
        return None
    answers = tables.read_table(folder, "answers")
    return answers if answers.num_rows else None


def make(task: Task, folder: Path) -> dict[str, float]:
    """Write metrics.json, per_query.parquet, comparisons.json, recall.json, cost.json."""
    name = params.choose("evaluate", task.entry, "suite", SUITES, study=task.study)
    suite = shell.method("stages.evaluate", name)
    values = params.load(suite.Params, "evaluate", task.entry, study=task.study)
    corpus = task.slot("ingest", values.corpus)
    kinds = suite.Collection._fields
    collection = suite.Collection(*(tables.read_table(corpus, kind) for kind in kinds))
    systems = [
        suite.System(system, tables.read_table(path, "runs"), read_answers(path))
        for system, path in find_systems(task, values).items()
    ]
    keys = {"split", "baseline", "measures", "resamples", "seed"}
    done = suite.evaluate(collection, systems, **values.model_dump(include=keys))
    tables.write_table(done.per_query, folder, "per_query")
    for part in ("metrics", "comparisons", "recall", "cost"):
        shell.write_json(folder / f"{part}.json", getattr(done, part))
    return {"systems": len(systems), "values": done.per_query.num_rows}


if __name__ == "__main__":
    shell.run("evaluate", evaluate.__doc__, make)
