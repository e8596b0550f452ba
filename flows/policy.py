"""The section ``retrain:`` of params.yaml: when to retrain, what to build, what the gate asks for.

Its four entries have a model each: ``drift`` (drift.py), ``gate`` (gate.py), ``flow`` and
``deploy`` (here). The section is no room: no stage reads it, and DVC does not track it.
"""

import difflib
from pathlib import Path
from typing import NamedTuple

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from flows.drift import DriftPolicy
from flows.gate import GatePolicy
from stages import params
from stages.errors import QuarryError
from stages.params import PARAMS, Entry


class FlowPolicy(Entry):
    """``retrain.flow``: what is refreshed and built."""

    targets: list[str] = Field([])  # as for dvc repro; none: every default stage
    drop: dict[str, str] = Field(
        {}
    )  # entry of ingest -> the folder that is read in its path's place
    questions: int = Field(40, ge=1)  # asked of both revisions for the latency
    encoder: dict[str, str] = Field({})  # corpus -> entry of finetune, for the shift of embeddings


class DeployPolicy(Entry):
    """``retrain.deploy``: when, and who is told."""

    cron: list[str] = Field(["30 3 * * *"])  # five fields each; none: only by hand
    timezone: str = "UTC"
    at_once: int = Field(1, ge=1)  # flow runs of the work pool
    hook: list[str] = Field([])  # argv; run when a retraining failed, was refused or was killed
    hook_seconds: int = Field(60, ge=1)
    sweep_seconds: int = Field(60, ge=1)  # between looks for runs whose process is gone

    @field_validator("cron")
    @classmethod
    def _readable(cls, cron: list[str]) -> list[str]:
        from datetime import datetime

        for line in cron:
            try:
                CronSim(line, datetime(2026, 1, 1))
            except CronSimError as e:
                raise ValueError(f"'{line}' is no schedule: {e}") from None
        return cron


class Policy(NamedTuple):
    """All of it."""

    drift: DriftPolicy
    gate: GatePolicy
    flow: FlowPolicy
    deploy: DeployPolicy


MODELS = {name: model for name, model in Policy.__annotations__.items()}


def read_policy(path: Path = PARAMS) -> Policy:
    """The section, validated.

    Raises:
        QuarryError: it is missing, or has a section, a key or a value that is not known.
    """
    there = params.entries("retrain", path=path)
    for name in there:
        if name not in MODELS:
            near = difflib.get_close_matches(name, MODELS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise QuarryError(
                f"{path}: retrain.{name}: unknown key.{hint} Known here: {', '.join(MODELS)}."
            )
    return Policy(
        *(params.load(model, "retrain", name, path=path) for name, model in MODELS.items())
    )
