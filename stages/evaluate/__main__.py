"""Measure the systems of an entry of 'evaluate' in params.yaml and compare them."""

from pathlib import Path

import pyarrow as pa

from stages import evaluate, params, shell, tables
from stages.errors import QuarryError
from stages.evaluate import SUITES
from stages.params import Entry
from stages.shell import NONE, Task


def find_systems(task: Task, values: Entry) -> dict[str, Path]:
    """The folder of each system that takes part, by name: runs of serve, then of fuse.

    Those are the runs that the entry names, and the baseline. A run is one of an entry that
    there is: what an entry left behind that was renamed or removed since takes no part.
    """
    wanted = {*values.runs, values.baseline} - {NONE}
    repro = "dvc repro studies/dvc.yaml:" if task.study else "dvc repro "
    found: dict[str, Path] = {}
    there: dict[str, str] = {}  # all entries over the corpus -> their room
    for room, *slot in (("serve", "runs", values.corpus), ("fuse", "fused", values.fused)):
        for name, entry in params.entries(room, study=task.study).items():
            if not isinstance(entry, dict) or entry.get("corpus") != slot[1]:
                continue
            if name in there:
                raise QuarryError(
                    f"evaluate.{task.entry}: {there[name]}.{name} and {room}.{name} have the "
                    f"same name. Rename one of the two in params.yaml."
                )
            there[name] = room
        for name in sorted(name for name in wanted if there.get(name) == room):
            found[name] = task.folder(*slot) / name
            if not (found[name] / "runs.parquet").is_file():
                raise QuarryError(
                    f"evaluate.{task.entry}: the run {found[name]} is missing. "
                    f"Make it with: {repro}{room}@{name}"
                )
    for key, names in {"runs": values.runs, "baseline": [values.baseline]}.items():
        if lost := [name for name in names if name not in found and name != NONE]:
            raise QuarryError(
                f"evaluate.{task.entry}.{key}: '{lost[0]}' is no entry of serve with corpus "
                f"'{values.corpus}', nor of fuse with corpus '{values.fused}'; there are: "
                f"{', '.join(there) or 'none'}. Name one of them, or add the entry to params.yaml."
            )
    return found


def read_answers(folder: Path) -> pa.Table | None:
    """What a system answered and cost, None where it kept no account."""
    if not (folder / "answers.parquet").exists():
        return None
    answers = tables.read_table(folder, "answers")
    return answers if answers.num_rows else None


def read_effects(folder: Path) -> pa.Table | None:
    """What a system asked for, None where it kept no log."""
    if not (folder / "effects.parquet").exists():
        return None
    effects = tables.read_table(folder, "effects")
    return effects if effects.num_rows else None


def most_passages(task: Task, system: str) -> int | None:
    """The budget of passages of a question, None where there is none.

    No parameter of this stage: where another budget tells a strategy anything else, its run is
    another, and this stage is run again.
    """
    entry = params.entries("serve", study=task.study).get(system) or {}
    return (entry.get("budget") or {}).get("max_docs")


def make(task: Task, folder: Path) -> dict[str, float]:
    """Write metrics.json, per_query.parquet, comparisons.json and three plots."""
    name = params.choose("evaluate", task.entry, "suite", SUITES, study=task.study)
    suite = shell.method("stages.evaluate", name)
    values = params.load(suite.Params, "evaluate", task.entry, study=task.study)
    corpus = task.slot("ingest", values.corpus)
    kinds = suite.Collection._fields
    collection = suite.Collection(*(tables.read_table(corpus, kind) for kind in kinds))
    systems = [
        suite.System(
            system,
            tables.read_table(path, "runs"),
            read_answers(path),
            read_effects(path),
            most_passages(task, system),
        )
        for system, path in find_systems(task, values).items()
    ]
    keys = {"split", "baseline", "measures", "resamples", "seed"}
    done = suite.evaluate(collection, systems, **values.model_dump(include=keys))
    tables.write_table(done.per_query, folder, "per_query")
    for part in ("metrics", "comparisons", "recall", "cost", "rounds"):
        shell.write_json(folder / f"{part}.json", getattr(done, part))
    return {"systems": len(systems), "values": done.per_query.num_rows}


if __name__ == "__main__":
    shell.run("evaluate", evaluate.__doc__, make)
