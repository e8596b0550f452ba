"""Measure what lookahead is worth: a recorded run, replayed under conditions that differ in time.

``python -m stages.serve.measure ENTRY --study`` takes an entry of ``studies.latency``: a run of
``serve`` (its effect log is the trace), an index of kind ``clustered``, and lists of what is to be
compared. It calibrates on some questions (bandwidth, window, miss curve, budget) and replays others
under every condition, in turn, so that a machine that is busy for a while is busy for all of them.

Writes ``measured/latency/<entry>``: serve_log.parquet (a row per search), budget.json (the
calibration), metrics.json, and the rows of three plots. These are measurements: Git ignores them,
they are not equal from run to run, and no stage reads them; ``flows.report`` shows them.

Measuring stands in this room because it runs the room's engine and strategies, and figures stand
beside it, not in ``evaluate``, because a stage there would have to read what was measured here. It
is a command of its own and no word of the shell (as ``http`` is): the shell is a dependency of
every entry of ``serve``, and measuring changes no run.
"""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from stages import params, shell
from stages.asking import Asking
from stages.errors import QuarryError
from stages.params import Entry
from stages.serve import STRATEGIES
from stages.serve.asked import Library
from stages.shell import Task
from stages.tables import read_table
from stages.tools import Tools

log = logging.getLogger(__name__)

MIB = 2**20
System = Literal["none", "gradual", "all", "once", "runtime"]


class Params(Entry):
    """An entry of ``latency``. Of the lists below, one besides ``systems`` may have several values:
    what the study is about."""

    strategy: str  # of the run: names its file
    corpus: str
    index: str  # of kind clustered; another than the run was recorded with is fine
    encoder: str
    model: str
    run: str  # <corpus>/<entry of serve>: what is replayed
    systems: list[System] = Field(["none", "gradual"], min_length=1)
    nprobe: list[PositiveInt] = Field([])  # none: the index's
    batch: list[PositiveInt] = Field([1], min_length=1)  # requests served together
    order: list[Literal["arrival", "similar"]] = Field(["arrival"], min_length=1)
    budget_mib: list[NonNegativeFloat] = Field([])  # of a window; none: the calibration's
    questions: PositiveInt = 12  # that are measured
    calibrate: PositiveInt = 6  # others, for the latency model; at least the largest batch
    disk_mib_s: PositiveFloat | None = None  # the cold tier's speed; none: the disk's own
    disk_ms: NonNegativeFloat = 0.0  # besides, for each run of neighbouring clusters
    hot_mib: PositiveInt = 64  # of clusters in memory
    cache_fraction: float = Field(0.0, ge=0, le=1)  # of it; what stays from request to request
    depth: PositiveInt = 1024  # clusters of a hint's list that are looked at
    group_kib: PositiveInt = 4096  # of clusters that become resident together
    threads: PositiveInt = 1  # of the model; the copies have the rest of the machine

    @model_validator(mode="after")
    def _is_one_study(self) -> "Params":
        several = [
            n for n in ("nprobe", "batch", "order", "budget_mib") if len(getattr(self, n)) > 1
        ]
        if len(several) > 1:
            raise ValueError(f"{' and '.join(several)} have several values: make that two entries")
        if self.disk_mib_s is None and self.cache_fraction:
            raise ValueError(
                "the disk's own speed is measured with its pages dropped before each request, and "
                "what was fetched with them: cache_fraction 0, or a disk_mib_s"
            )
        return self


def make(task: Task, folder: Path) -> dict[str, float]:
    """Write serve_log.parquet, budget.json, metrics.json and three plots."""
    from stages.lm import open_generator
    from stages.serve.prefetch import serve_log, studying
    from stages.serve.prefetch.calibrate import curve, summary
    from stages.serve.prefetch.replaying import Recorded

    values = params.load(Params, "latency", task.entry, study=task.study)
    corpus, index = task.slot("ingest", values.corpus), task.slot("index", values.index)
    encoder = task.slot("finetune", values.encoder)
    how = load_run(task, values)
    run = task.folder("runs", values.run)
    if not run.is_dir():
        repro = "studies/dvc.yaml:serve@" if task.study else "serve@"
        raise QuarryError(
            f"latency.{task.entry}: run {run} is missing. Make it with: dvc repro {repro}{run.name}"
        )
    recorded = Recorded(values.run, read_table(run, "effects"))
    queries = read_table(corpus, "queries")
    least = max(values.calibrate, *values.batch)
    measured, others = studying.pick(recorded, queries, values.questions, least)
    generator = open_generator(task.slot("finetune", values.model), threads=values.threads)
    library = Library(read_table(corpus, "passages"), generator.count_tokens)
    method = shell.method("stages.serve", STRATEGIES[values.strategy])
    disk = values.disk_mib_s
    bench = studying.Bench(
        index, encoder,
        {
            "hot_bytes": values.hot_mib * MIB, "cache_fraction": values.cache_fraction,
            "depth": values.depth, "group_bytes": values.group_kib * 1024,
            "throttle": (disk * MIB, values.disk_ms / 1000) if disk else None,
        },
        partial(method.strategy, params=how, library=library),
        Asking(Tools(generator), how.seed, how.budget), recorded,
    )  # fmt: skip
    log.info("%s: %d questions, %d to calibrate on", values.run, len(measured), len(others))
    nprobe, given = values.nprobe or [None], [int(b * MIB) for b in values.budget_mib]
    calibrated = {g: studying.calibrate_on(bench, others, nprobe[0], g) for g in values.batch}
    done = calibrated[values.batch[0]]
    conditions = studying.plan_conditions(
        systems=values.systems, nprobe=nprobe, batch=values.batch, order=values.order,
        budget={g: given or [own.budget] for g, own in calibrated.items()},
    )  # fmt: skip
    served = studying.serve_all(bench, conditions, measured)
    serve_log.check_equal(served)

    figures = serve_log.metrics(served)
    most = max([2 * done.budget, *(c.budget_bytes for c in conditions)])
    machine = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    calibration = summary(done)
    serve_log.write_log(serve_log.log_table(values.strategy, served), folder)
    shell.write_json(folder / "budget.json", calibration | {"curve": curve(done, most)})
    shell.write_json(
        folder / "metrics.json",
        {"calibration": calibration, "machine": machine, "served": figures},
    )
    shell.write_json(folder / "latency.json", serve_log.latency_rows(served, figures))
    hits = curve(done, most) + serve_log.hit_rows(served, figures)
    shell.write_json(folder / "hit_rate.json", hits)
    return {"conditions": len(conditions), "questions": len(measured)}


def load_run(task: Task, values: Params) -> Any:
    """The values with which the run was recorded, of its entry in params.yaml.

    Raises:
        QuarryError: there is no such entry, or it is over another corpus or of another strategy.
    """
    corpus, _, entry = values.run.partition("/")
    raw = params.entry_values("serve", entry, study=task.study)
    for key, said in {"corpus": corpus, "strategy": values.strategy}.items():
        if raw.get(key) != said or (key == "corpus" and said != values.corpus):
            raise QuarryError(
                f"latency.{task.entry}: {key} is '{getattr(values, key)}' and run '{values.run}', "
                f"but serve.{entry} has {key} '{raw.get(key)}'. They must be the same."
            )
    name = params.choose("serve", entry, "strategy", STRATEGIES, study=task.study)
    model = shell.method("stages.serve", name).Params
    how = params.load(model, "serve", entry, study=task.study)
    if how.model != values.model:
        raise QuarryError(
            f"latency.{task.entry}: the run was recorded with model '{how.model}'; name that one: "
            f"tokens of another are not the same."
        )
    return how


def out_folder(task: Task) -> Path:
    """Measurements lie beside the results of stages, not among them."""
    return Path("measured/latency") / task.entry


if __name__ == "__main__":
    shell.run("latency", __doc__ or "", make, out=out_folder)
