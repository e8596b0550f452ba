"""One study: the stages that its evaluation needs, and no others. ``make study NAME=world``.

An evaluation reads the folder of its corpus's runs, so ``dvc repro studies/dvc.yaml:evaluate@NAME``
makes every run over that corpus first, those that need a server too. Here the runs that the entry
names are followed instead, and DVC makes each stage alone, in order (``dvc repro -s``): it skips
what did not change, and a study that was stopped goes on. The evaluation itself, seconds, is made
again whenever any run of its corpus is new.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence

from flows import dvc
from flows.dvc import Stage
from stages import params
from stages.errors import QuarryError

FILE = "studies/dvc.yaml"


def needed(name: str, stages: Mapping[str, Stage], runs: Mapping[str, Sequence[str]]) -> list[str]:
    """The stages to make for one, which comes last; each behind all that it needs.

    Args:
        name: a stage.
        stages: all there are; a folder that none of them writes is not followed.
        runs: by stage the runs that it takes from the folders it reads.
    """
    maker = {path: stage.name for stage in stages.values() for path in stage.writes}
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        folders = stages[name].reads
        named = [f"{folder}/{run}" for folder in folders for run in runs.get(name, ())]
        for path in (*folders, *named):
            if path in maker and maker[path] not in found:
                visit(maker[path])
        found[name] = None

    visit(name)
    return list(found)


def plan(name: str) -> list[str]:
    """The stages of a study, by DVC's addresses.

    Raises:
        QuarryError: there is no such entry under ``studies.evaluate``.
    """
    params.entry_values("evaluate", name, study=True)
    runs = {
        f"{FILE}:{room}@{entry}": values.get("runs", [])
        for room in ("fuse", "evaluate")
        for entry, values in params.entries(room, study=True).items()
    }
    return needed(f"{FILE}:evaluate@{name}", dvc.graph([FILE]), runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan, and let DVC make it."""
    p = argparse.ArgumentParser(prog="python -m flows.study", description=__doc__)
    p.add_argument("name", nargs="?", help="an entry under studies.evaluate; none: list them")
    p.add_argument("--plan", action="store_true", help="print its stages and end")
    args = p.parse_args(argv)
    try:
        if not args.name:
            print("\n".join(params.entries("evaluate", study=True)))
            return 0
        stages = plan(args.name)
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    print("\n".join(stages), flush=True)
    if args.plan:
        return 0
    made = subprocess.run(dvc.command(*stages), env=dvc.environment(), check=False)
    return made.returncode


if __name__ == "__main__":
    sys.exit(main())
