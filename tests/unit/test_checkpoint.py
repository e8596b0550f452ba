"""A training's state on disk: what it holds, that it is whole, that Adam goes on from it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stages import checkpoint
from stages.errors import QuarryError


class Killed(Exception):
    pass


class Model(nn.Module):
    """Two layers that are trained, and one that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.used = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
            self.unused = nn.Linear(2, 2)


def trained(path: Path | None, steps: int, *, fused: bool = False) -> tuple[torch.Tensor, int]:
    """The weights after ``steps`` from wherever ``path`` stands, and where that was."""
    model = Model()
    params = dict(model.named_parameters())
    optimiser = torch.optim.AdamW(params.values(), lr=0.1, fused=fused)
    first = checkpoint.resume(path, params, optimiser)
    for step in range(first, steps):
        x = torch.arange(6.0).reshape(2, 3).sin() + step
        model.used(x).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        if path:
            checkpoint.save(path, step + 1, params, optimiser)
    return torch.cat([p.detach().flatten() for p in params.values()]), first


@pytest.mark.parametrize("fused", [False, True])
def test_a_training_in_two_parts_ends_as_in_one(tmp_path: Path, fused: bool) -> None:
    path = tmp_path / "made" / "c.safetensors"
    whole, _ = trained(None, 7, fused=fused)
    half, first = trained(path, 3, fused=fused)
    assert first == 0 and not torch.equal(half, whole)
    rest, first = trained(path, 7, fused=fused)
    assert first == 3 and torch.equal(rest, whole)
    again, first = trained(path, 7, fused=fused)
    assert first == 7 and torch.equal(again, whole)
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


def test_it_holds_the_weights_that_moved_and_their_moments(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    trained(path, 1)
    names = ["used.0.bias", "used.0.weight", "used.2.bias", "used.2.weight"]
    assert sorted(load_file(path)) == [
        f"{part}/{name}" for part in ("first", "second", "weight") for name in names
    ]


def test_dying_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "c.safetensors"
    whole, _ = trained(None, 4)
    trained(path, 2)

    def dies(tensors: dict, file: Path, metadata: dict) -> None:
        file.write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "save_file", dies)
        trained(path, 4)
    rest, first = trained(path, 4)
    assert first == 2 and torch.equal(rest, whole)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c.safetensors"
    trained(path, 1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(QuarryError, match=r"c\.safetensors: damaged checkpoint.*Delete it"):
        trained(path, 2)
