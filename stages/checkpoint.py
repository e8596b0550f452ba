"""Where a training stands, in one safetensors file: after a kill it goes on from there.

A checkpoint holds the weights that have moved, both of Adam's moments and the number of steps
behind it; nothing is pickled. It knows nothing of what was drawn at random: a step may draw only
from its seed and its number. Its recipe names it by the digest of everything that decides the
training, and removes it once the model is written.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from stages.errors import QuarryError

log = logging.getLogger(__name__)

CHECKPOINTS = Path(".quarry/checkpoints")


def save(
    path: Path, step: int, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> None:
    """Write weights, both moments and the step, in one file that is there whole or not at all."""
    tensors = {}
    for name, p in trained.items():
        if state := optimiser.state.get(p):  # none: no gradient has reached it, it has not moved
            tensors |= {
                f"weight/{name}": p.detach(),
                f"first/{name}": state["exp_avg"],
                f"second/{name}": state["exp_avg_sq"],
            }
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{path.name}.tmp")
    save_file(tensors, tmp, metadata={"step": str(step)})
    tmp.replace(path)


def resume(
    path: Path | None, trained: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> int:
    """The number of steps that a checkpoint has behind it, after loading it; 0 without one.

    Raises:
        QuarryError: the file is damaged.
    """
    if path is None or not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as f, torch.no_grad():
            step, saved = int(f.metadata()["step"]), set(f.keys())
            for name, p in trained.items():
                if f"weight/{name}" in saved:
                    p.copy_(f.get_tensor(f"weight/{name}"))
                    optimiser.state[p] = {
                        "step": torch.tensor(float(step)),
                        "exp_avg": f.get_tensor(f"first/{name}").to(p.device),
                        "exp_avg_sq": f.get_tensor(f"second/{name}").to(p.device),
                    }
    except SafetensorError as e:
        raise QuarryError(f"{path}: damaged checkpoint ({e}). Delete it and run again.") from e
    log.info("going on from step %d of %s", step, path)
    return step
