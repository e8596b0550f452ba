"""Fuse the runs that an entry of 'fuse' in params.yaml names into one."""

from pathlib import Path

from stages import fuse, params, shell, tables
from stages.errors import QuarryError
from stages.fuse import RULES
from stages.fuse.costs import add_costs
from stages.shell import Task


def find_runs(task: Task, corpus: str, names: list[str]) -> list[Path]:
    """The folders of the named runs over a corpus, in the order named."""
    folder = task.folder("runs", corpus)
    there = sorted(p.parent.name for p in folder.glob("[!.]*/runs.parquet"))
    for name in names:
        if name not in there:
            raise QuarryError(
                f"fuse.{task.entry}.runs: no run '{name}' in {folder}; "
                f"there are: {', '.join(there) or 'none'}. "
                f"Make it with: dvc repro serve@{name}, or name another run."
            )
    return [folder / name for name in names]


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
