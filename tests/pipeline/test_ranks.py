"""Training by two processes (``accelerate launch``, ``torchrun``): one's losses, and one output."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from preference_fakes import group, model_folder
from rooms import files, write_params
from test_finetune_preference import VALUES, write_groups

from stages.models import read_training
from stages.ranks import ALONE, Ranks

ROOT = Path(__file__).resolve().parents[2]
# python -m stages.finetune that also says what every step's loss is, and who reads what.
VERBOSE = """
import logging, os, runpy, sys
import torch
from stages import preference_trainer as trainer
logging.getLogger(trainer.__name__).setLevel(logging.DEBUG)
def log_probs(model, groups, of=trainer.log_probs):
    if torch.is_grad_enabled():
        print(f"<rank {os.environ.get('RANK', '0')} reads {len(groups)}>", flush=True)
    return of(model, groups)
trainer.log_probs = log_probs
runpy.run_module("stages.finetune", run_name="__main__")
"""
LAUNCH = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0",
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
GROUPS = [
    group(f"Q{i}: {'elm ' * (i % 4)}", [" yes", " no", " maybe"], split="train", weight=1 + i % 3)
    for i in range(7)
] + [group("D1: ", [" yes", " no"], split="dev")]


class Trained(NamedTuple):
    """What one run left."""

    losses: list[float]  # by step
    read: Counter[str]  # groups by rank
    tokens: int
    said: str


def project(folder: Path, **changes: object) -> Path:
    for room in ("finetune", "ingest/none", "index/none", "finetune/none", "pairs"):
        (folder / "data" / room).mkdir(parents=True)
    write_groups(folder / "data/pairs/p", GROUPS)
    model_folder(folder / "data/finetune/m")
    os.chdir(folder)
    write_params(finetune={"dpo": {**VALUES, **changes}, "copied": {"recipe": "pretrained"}})
    (folder / "verbose.py").write_text(VERBOSE)
    return folder


def run(folder: Path, *launcher: str, entry: str = "dpo", fails: bool = False) -> Trained:
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUARRY_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, "verbose.py", entry],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, said
    losses = [float(x) for x in re.findall(r"step \d+: loss (\S+)", said)]
    read: Counter[str] = Counter()
    for rank, n in re.findall(r"<rank (\d) reads (\d+)>", said):
        read[rank] += int(n)
    timing = folder / ".quarry/timings/finetune/dpo.json"
    tokens = 0 if fails else json.loads(timing.read_text())["trained_tokens"]
    return Trained(losses, read, tokens, said)


@pytest.mark.parametrize(("launcher", "batch"), [(LAUNCH, 3), (LAUNCH, 1), (TORCHRUN, 3)])
def test_two_processes_have_the_losses_of_one(
    launcher: list[str], batch: int, tmp_path: Path, monkeypatch
) -> None:
    """Batch 3: one reads two groups of a step and the other one. Batch 1: one reads nothing."""
    monkeypatch.chdir(tmp_path)  # and back
    alone = run(project(tmp_path / "one", batch=batch))
    both = run(project(tmp_path / "two", batch=batch), *launcher)
    steps = VALUES["steps"]
    assert len(alone.losses) == steps and max(alone.losses) - min(alone.losses) > 0.01
    assert both.losses == pytest.approx(alone.losses, rel=0, abs=1e-4)
    assert alone.read == {"0": batch * steps}
    assert both.read == ({"0": 2 * steps, "1": steps} if batch == 3 else {"0": steps})
    assert both.tokens == alone.tokens
    one, two = (
        read_training(tmp_path / n / "data/finetune/dpo", "generator")["made_by"]
        for n in ("one", "two")
    )
    assert two["dev"] == pytest.approx(one["dev"], abs=2e-3)
    written = [f for f in files(tmp_path / "two/data/finetune") if not f.startswith("m/")]
    assert written == [f for f in files(tmp_path / "one/data/finetune") if not f.startswith("m/")]


def test_a_recipe_that_cannot_be_shared_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(project(tmp_path / "two"), *LAUNCH, entry="copied", fails=True).said
    assert "recipe pretrained trains in one process" in said
    assert not (tmp_path / "two/data/finetune/copied").exists()


def test_shares_are_a_batch() -> None:
    batch = list("abcde")
    assert ALONE.share(batch) == batch
    assert [Ranks(r, 2).share(batch) for r in range(2)] == [["a", "c", "e"], ["b", "d"]]
    assert Ranks(2, 3).share("a") == ""
