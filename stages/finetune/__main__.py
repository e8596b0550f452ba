"""Shell of the finetune room: what the slots name in, a sealed model directory out."""

from pathlib import Path

from stages import finetune, params, shell
from stages.finetune import RECIPES, Inputs
from stages.models import TRAINING
from stages.shell import Task

ROOMS = {"corpus": "ingest", "pairs": "pairs", "index": "index"}  # the others: this room


def make(task: Task, folder: Path) -> dict[str, float]:
    """Fill the model directory; the recipe's measurements."""
    name = params.choose(task.room, task.entry, "recipe", RECIPES, study=task.study)
    recipe = shell.method("stages.finetune", name)
    values = params.load(recipe.Params, task.room, task.entry, study=task.study)
    slots = {s: task.slot(ROOMS.get(s, task.room), getattr(values, s)) for s in Inputs._fields}
    facts = recipe.train(values, Inputs(**slots), folder)
    assert (folder / TRAINING).exists(), f"recipe {name} left its directory unsealed"
    return facts


if __name__ == "__main__":
    shell.run("finetune", finetune.__doc__, make)
