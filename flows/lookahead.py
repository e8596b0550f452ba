"""What lookahead was measured to be worth, as a section of the report.

Reads ``measured/latency/*`` (``python -m stages.serve.measure`` writes them; no stage reads them)
for the entries of ``studies.latency``. What was not measured on this machine is '-'. Draws, and
computes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from flows import svg
from flows.page import Section, as_curves, as_table
from flows.report import format_number
from stages.errors import QuarryError
from stages.params import PARAMS, entries

MEASURED = Path("measured/latency")
ANCHOR, TITLE = "lookahead", "Serving: look-ahead"
PAIR = ("none", "gradual")
PARTS = {"model_s": "model", "retrieval_s": "retrieval", "other_s": "the rest"}
ABOUT = (
    "Recorded runs, replayed with clusters fetched while the model writes and without: the same "
    "prompts, token counts and queries, so that only time differs. Seconds per question; "
    "[95 % of the ratio, bootstrap over questions]. They are measurements of one machine: what "
    "else it did is in them."
)


class Study(NamedTuple):
    """An entry of ``studies.latency``, and what was measured; empty where nothing was."""

    name: str
    values: Mapping[str, Any]
    calibration: Mapping[str, float]
    served: Mapping[str, Mapping[str, float]]  # condition -> figure -> value
    hits: Sequence[Mapping[str, Any]]  # rows: system, mib, hit_rate
    machine: Mapping[str, float]

    @property
    def is_pipeline(self) -> bool:
        """With and without, and nothing else: stands beside the other pipelines."""
        compared = ("nprobe", "batch", "order", "budget_mib")
        return not (
            set(self.values.get("systems", PAIR)) - set(PAIR)
            or self.values.get("batch", [1]) != [1]
            or any(len(self.values.get(key, ())) > 1 for key in compared)
        )


def read_studies(*, params: Path = PARAMS, folder: Path = MEASURED) -> list[Study]:
    """The entries, in the order of params.yaml; none where it has no such block."""
    try:
        found = entries("latency", study=True, path=params)
    except QuarryError:
        return []
    return [_read(name, own, folder / name) for name, own in found.items()]


def _read(name: str, values: Mapping[str, Any], folder: Path) -> Study:
    if not (folder / "metrics.json").exists():
        return Study(name, values, {}, {}, [], {})
    said, hits, bars = (
        json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        for part in ("metrics", "hit_rate", "latency")
    )
    served = {row["system"]: said["served"][row["system"]] for row in bars}  # in the study's order
    return Study(name, values, said["calibration"], served, hits, said["machine"])


def section(studies: Sequence[Study]) -> list[Section]:
    """The section, in a list; an empty list where the catalogue has no such study."""
    if not studies:
        return []
    pipelines = [s for s in studies if s.is_pipeline]
    others = [s for s in studies if not s.is_pipeline]
    parts = [
        f'<section><h2 id="{ANCHOR}">{TITLE}</h2><p class="soft">{ABOUT}</p>',
        _pipelines_table(pipelines),
        f'<div class="plots">{_pipelines_plot(pipelines)}{_curves_plot(pipelines)}</div>',
        *(_study(s) for s in others),
        "</section>",
    ]
    return [Section(ANCHOR, TITLE, "\n".join(parts))]


# -- pipelines ----------------------------------------------------------------------------


def _pipelines_table(studies: Sequence[Study]) -> str:
    """With and without, a row per pipeline."""
    head = ["pipeline", "n", "s without", "s with", "speed-up", "expected", "retrieval", "hit rate",
            "searches", "window s", "fetch / window", "budget MiB", "load"]  # fmt: skip
    lines = []
    for s in studies:
        without, ahead = (s.served.get(name, {}) for name in PAIR)
        cells = [
            format_number(without.get("n"), "g"), format_number(without.get("seconds"), ".2f"),
            format_number(ahead.get("seconds"), ".2f"), _ratio(ahead),
            format_number(s.calibration.get("expected_speedup"), ".2f"),
            format_number(ahead.get("retrieval_speedup"), ".2f"),
            format_number(ahead.get("hit_rate"), ".2f"),
            format_number(without.get("searches"), ".1f"),
            format_number(s.calibration.get("window_s"), ".2f"),
            format_number(s.calibration.get("fetch_over_window"), ".2f"),
            format_number(s.calibration.get("budget_mib"), ".2f"),
            format_number(s.machine.get("load"), ".1f"),
        ]  # fmt: skip
        lines.append(_row(s.name, cells))
    return as_table(head, lines)


def _pipelines_plot(studies: Sequence[Study]) -> str:
    bars = {
        f"{s.name} {label}": [figures[p] for p in PARTS]
        for s in studies
        for label, figures in s.served.items()
    }
    return _bars("Seconds per question, without and with, per pipeline", bars)


def _curves_plot(studies: Sequence[Study]) -> str:
    """The expected hit rate against the budget, a line per pipeline."""
    series = {
        s.name: [(r["mib"], r["hit_rate"]) for r in s.hits if r["system"] == "expected"]
        for s in studies
        if s.hits
    }
    return _lines("Hit rate against budget, from calibration", series, "hit rate of pipelines")


# -- the other studies --------------------------------------------------------------------


def _study(study: Study) -> str:
    """One study: its table, its bars; its hit rates where budgets are compared."""
    name = escape(study.name)
    made = f"dvc repro studies/dvc.yaml:latency@{name}"
    about = f"run <code>{escape(str(study.values.get('run')))}</code> · <code>{made}</code>"
    head = ["condition", "n", "s", "model s", "retrieval s", "hit rate", "MiB copied", "MiB missed",
            "questions/s", "speed-up"]  # fmt: skip
    lines = []
    for label, f in study.served.items():
        cells = [
            format_number(f.get("n"), "g"),
            *(format_number(f.get(k), ".2f") for k in ("seconds", "model_s", "retrieval_s")),
            *(format_number(f.get(k), ".2f") for k in ("hit_rate", "copied_mib", "missed_mib")),
            format_number(f.get("per_second"), ".3f"), _ratio(f),
        ]  # fmt: skip
        lines.append(_row(label, cells))
    if not lines:
        lines = [_row("-", ["-"] * (len(head) - 1))]
    bars = {label: [f[p] for p in PARTS] for label, f in study.served.items()}
    plots = _bars(f"Seconds per question: {study.name}", bars)
    if len(study.values.get("budget_mib", [])) > 1:
        series: dict[str, list[svg.Point]] = {}
        for r in study.hits:
            series.setdefault(r["system"], []).append((r["mib"], r["hit_rate"]))
        plots += _lines(f"Hit rate against budget: {study.name}", series, study.name)
    machine = ""
    if study.machine:
        machine = f" · {study.machine['cores']} cores, load {study.machine['load']:.1f}"
    return "\n".join(
        [
            f'<h3>{name}</h3><p class="soft">{about}{machine}</p>',
            as_table(head, lines),
            f'<div class="plots">{plots}</div>',
        ]
    )


# -- what they share ----------------------------------------------------------------------


def _row(name: str, cells: Sequence[str]) -> str:
    return (
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
    )


def _ratio(figures: Mapping[str, float]) -> str:
    """``1.31 [1.20–1.44]``, or '-'."""
    if "speedup" not in figures:
        return "-"
    low, high = figures["speedup_low"], figures["speedup_high"]
    return f"{figures['speedup']:.2f} [{low:.2f}–{high:.2f}]"


def _bars(title: str, bars: Mapping[str, Sequence[float]]) -> str:
    if not bars:
        return ""
    x = svg.axis_from_zero("seconds per question", [sum(v) for v in bars.values()])
    plot = svg.bar_plot(bars, list(PARTS.values()), x, f"{title}; table above")
    names = "".join(f"<li>{_patch(i)}{escape(part)}</li>" for i, part in enumerate(PARTS.values()))
    return f'<figure><h3>{escape(title)}</h3>{plot}<ul class="legend">{names}</ul></figure>'


def _patch(number: int) -> str:
    return (
        '<svg class="swatch" viewBox="0 0 14 12" aria-hidden="true">'
        f'<rect x="1" y="1" width="12" height="10" fill="{svg.colour(number)}"/></svg>'
    )


def _lines(title: str, series: Mapping[str, Sequence[svg.Point]], alt: str) -> str:
    if not series:
        return ""
    points = [p for own in series.values() for p in own]
    x = svg.axis_from_zero("budget of a window, MiB", [p[0] for p in points])
    y = svg.Axis("hit rate", 0, 1, [0, 0.25, 0.5, 0.75, 1])
    plot = svg.line_plot(series, x, y, f"{title}: {alt}")
    return as_curves(escape(title), plot, series, {name: i for i, name in enumerate(series)})
