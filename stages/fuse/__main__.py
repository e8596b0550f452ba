"""Fuse the runs that an entry of 'fuse' in params.yaml names into one."""

from pathlib import Path

from stages import fuse, params, shell, tables
from stages.errors import QuarryError
from stages.fuse import RULES
from stages.fuse.costs import add_costs
from stages.shell import Task


def find_runs(task: Task, corpus: str, names: list[str]) -> list[Path]:
    """The folders of the named runs over a corpus, in the order named.

    A run is one of an entry that there is, as in ``evaluate``: not what a renamed one left.
    """
    entries = params.entries("serve", study=task.study).items()
    there = [n for n, entry in entries if isinstance(entry, dict) and entry.get("corpus") == corpus]
    repro = "dvc repro studies/dvc.yaml:" if task.study else "dvc repro "
    folders = [task.folder("runs", corpus) / name for name in names]
    for name, folder in zip(names, folders, strict=True):
        if name not in there:
            raise QuarryError(
                f"fuse.{task.entry}.runs: '{name}' is no entry of serve with corpus '{corpus}'; "
                f"there are: {', '.join(there) or 'none'}. "
                f"Name one of them, or add the entry to params.yaml."
            )
        if not (folder / "runs.parquet").is_file():
            raise QuarryError(
                f"fuse.{task.entry}: the run {folder} is missing. Make it with: {repro}serve@{name}"
            )
    return folders


def make(task: Task, folder: Path) -> dict[str, float]:
    """Write runs.parquet, and answers.parquet with what the fused runs cost together."""
    name = params.choose("fuse", task.entry, "rule", RULES, study=task.study)
    rule = shell.method("stages.fuse", name)
    values = params.load(rule.Params, "fuse", task.entry, study=task.study)
    folders = find_runs(task, values.corpus, values.runs)
    runs = [tables.read_table(f, "runs") for f in folders]
    fused = rule.fuse(runs, **values.model_dump(exclude={"rule", "corpus", "runs"}))
    tables.write_table(fused, folder, "runs")
    costs = add_costs([tables.read_table(f, "answers") for f in folders])
    tables.write_table(costs, folder, "answers")
    return {"hits_in": sum(r.num_rows for r in runs), "hits_out": fused.num_rows}


def fused_folder(task: Task) -> Path:
    """Fused runs lie by corpus, as runs do."""
    values = params.entry_values("fuse", task.entry, study=task.study)
    return task.folder("fused", str(values.get("corpus"))) / task.entry


if __name__ == "__main__":
    shell.run("fuse", fuse.__doc__, make, out=fused_folder)
