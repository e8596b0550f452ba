"""Shell of the finetune room: what the slots name in, a sealed model directory out."""

import sys
import tempfile
from pathlib import Path

from stages import finetune, params, ranks, shell
from stages.errors import QuarryError
from stages.finetune import RECIPES, SHARED, Inputs
from stages.models import TRAINING
from stages.shell import Task

ROOMS = {"corpus": "ingest", "pairs": "pairs", "index": "index"}  # the others: this room


def make(task: Task, folder: Path) -> dict[str, float]:
    """Fill the model directory; the recipe's measurements."""
    name = params.choose(task.room, task.entry, "recipe", RECIPES, study=task.study)
    if ranks.launched().size > 1 and name not in SHARED:
        raise QuarryError(
            f"finetune.{task.entry}: recipe {name} trains in one process; several can share only "
            f"{', '.join(SHARED)}. Run it without accelerate launch."
        )
    recipe = shell.method("stages.finetune", name)
    values = params.load(recipe.Params, task.room, task.entry, study=task.study)
    slots = {s: task.slot(ROOMS.get(s, task.room), getattr(values, s)) for s in Inputs._fields}
    facts = recipe.train(values, Inputs(**slots), folder)
    assert ranks.launched().rank or (folder / TRAINING).exists(), (
        f"recipe {name} left its directory unsealed"
    )
    return facts


def take_part() -> None:
    """What every process but the first does: it computes its share, and leaves no file."""
    task = shell.parse("finetune", finetune.__doc__ or "")
    try:
        with tempfile.TemporaryDirectory() as folder:
            make(task, Path(folder))
    except QuarryError:
        sys.exit(2)  # the first process says what it is


if __name__ == "__main__":
    if ranks.launched().rank == 0:
        shell.run("finetune", finetune.__doc__, make)
    else:
        take_part()
