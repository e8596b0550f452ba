"""What the evaluations say: a table for the terminal, one for Markdown, and an HTML page.

Reads what stages wrote (``data/evaluate/*``) and what was measured beside it
(``.quarry/timings``: milliseconds per query are no result; missing or of other outputs they are
'-'). Joins, sorts and formats, and computes nothing else. ``page.py`` draws the page.

``python -m flows.report`` prints the leaderboard and writes ``.quarry/report/index.html``.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from stages.digest import folder_digest
from stages.errors import QuarryError
from stages.params import PARAMS, entries
from stages.shell import Task

PAGE = Path(".quarry/report/index.html")
MEASURES = ("nDCG@10", "R@100", "EM", "F1")  # have a column everywhere; others where they occur
WIDE = frozenset({"SupportR"})  # too much for a terminal's width; on the page and in Markdown
COUNTS = {"n", "tokens", "llm_calls", "failed"}  # in metrics.json, and no measures
ALPHA = 0.05
BETTER, WORSE = "▲", "▼"
LEGEND = (
    "[95 % bootstrap interval] n = questions. "
    f"{BETTER} {WORSE}: better, worse than the baseline *\n"
    f"(paired permutation test, Holm-adjusted p < {ALPHA}). "
    "-: cannot be measured there, or was not\nmeasured on this machine."
)


class Evaluation(NamedTuple):
    """An entry of ``evaluate``, and what its stage wrote."""

    name: str
    values: Mapping[str, Any]  # the entry in params.yaml
    metrics: Mapping[str, Mapping[str, float]]  # system -> measure -> mean, and counts
    figures: Sequence[Mapping[str, Any]]  # the means again, with intervals
    comparisons: Sequence[Mapping[str, Any]]
    recall: Sequence[Mapping[str, Any]]
    cost: Sequence[Mapping[str, Any]]
    ms: Mapping[str, float]  # system -> milliseconds per query, where measured
    rounds: Sequence[Mapping[str, Any]] = []
    stops: Mapping[str, Mapping[str, int]] = {}  # system -> how its questions ended


class Figure(NamedTuple):
    """A mean over n questions; interval and n are None where comparisons.json is not here."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    mark: str = ""  # BETTER or WORSE than the baseline


class Row(NamedTuple):
    """A system in an evaluation."""

    evaluation: str
    system: str
    is_baseline: bool
    figures: dict[str, Figure]  # those there are, by measure
    ms: float | None  # per query
    tokens: float | None  # per question


# -- reading ------------------------------------------------------------------------------


def read_evaluations(*, study: bool = False, params: Path = PARAMS) -> list[Evaluation]:
    """The evaluations that were made, in the order of params.yaml.

    ``metrics.json`` is in Git, the rest in DVC's cache: a clone that pulled nothing has values
    without intervals, tests and plots.
    """
    made = []
    for name, values in entries("evaluate", study=study, path=params).items():
        task = Task("evaluate", name, study)
        folder = task.folder("evaluate", name)
        if not (folder / "metrics.json").exists():
            continue
        metrics = _read_json(folder / "metrics.json")
        tests = _read_json(folder / "comparisons.json") or {"figures": [], "comparisons": []}
        drawn = ("recall", "cost", "rounds")
        plots = {plot: _read_json(folder / f"{plot}.json") or [] for plot in drawn}
        ms = {s: _read_ms(task, str(values.get("corpus")), s) for s in metrics}
        timed = {s: value for s, value in ms.items() if value is not None}
        made.append(Evaluation(name, values, metrics, **tests, **plots, ms=timed))
    return made


def _read_json(path: Path) -> Any:
    """The file's value, None without the file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_ms(task: Task, corpus: str, system: str) -> float | None:
    """Milliseconds per query of a serve entry, if they were measured for the run lying there."""
    timings = Path(".quarry/timings") / task.folder("serve", system).relative_to("data")
    timing = _read_json(timings.with_name(f"{timings.name}.json")) or {}
    run = task.folder("runs", corpus) / system
    if "ms_per_query" not in timing or not run.is_dir():
        return None
    return timing["ms_per_query"] if timing["outputs"] == folder_digest(run) else None


# -- the leaderboard ----------------------------------------------------------------------


def leaderboard_rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """A row per evaluation and system; within an evaluation the best ranking is first, systems
    without one follow by the quality of their answers."""
    return [
        row
        for evaluation in evaluations
        for row in sorted(_rows(evaluation), key=lambda r: (_merit(r), r.system), reverse=True)
    ]


def _rows(evaluation: Evaluation) -> list[Row]:
    figures = {(f["system"], f["measure"]): f for f in evaluation.figures}
    marks = {(c["system"], c["measure"]): _mark(c) for c in evaluation.comparisons}
    rows = []
    for system, metrics in evaluation.metrics.items():
        row: dict[str, Figure] = {}
        for measure in metrics.keys() - COUNTS:
            at = system, measure
            interval = (figures[at][k] for k in ("low", "high", "n")) if at in figures else ()
            row[measure] = Figure(metrics[measure], *interval)._replace(mark=marks.get(at, ""))
        is_baseline = system == evaluation.values.get("baseline")
        ms, tokens = evaluation.ms.get(system), metrics.get("tokens")
        rows.append(Row(evaluation.name, system, is_baseline, row, ms, tokens))
    return rows


def _mark(comparison: Mapping[str, Any]) -> str:
    if comparison["p_permutation_holm"] >= ALPHA:
        return ""
    return BETTER if comparison["difference"] > 0 else WORSE


def _merit(row: Row) -> tuple[float, ...]:
    measures = ("nDCG@10", "R@100", "F1", "ItemR")
    return tuple(row.figures[m].value if m in row.figures else -1.0 for m in measures)


def measures_of(rows: Sequence[Row]) -> list[str]:
    """The columns for these rows: the usual measures, then the others in them."""
    return [*MEASURES, *sorted({m for r in rows for m in r.figures} - {*MEASURES})]


def format_figure(figure: Figure | None, between: str = " ") -> str:
    """``0.376 ▲`` and ``[0.341–0.410] n=225``, or '-'."""
    if figure is None:
        return "-"
    value = f"{figure.value:.3f} {figure.mark}".rstrip()
    if figure.n is None:
        return value
    return f"{value}{between}[{figure.low:.3f}–{figure.high:.3f}] n={figure.n}"


def format_number(value: float | None, spec: str) -> str:
    """The number, or '-'."""
    return "-" if value is None else format(value, spec)


def _tables(
    rows: Sequence[Row], between: str, without: frozenset[str] = frozenset()
) -> list[tuple[str, list[list[str]]]]:
    """Title and lines of cells (the first is the head) for each evaluation."""
    tables = []
    for name, group in groupby(rows, key=lambda r: r.evaluation):
        members = list(group)
        measures = [m for m in measures_of(members) if m not in without]
        lines = [["system", *measures, "ms/query", "tokens/q"]]
        for row in members:
            figures = [format_figure(row.figures.get(m), between) for m in measures]
            costs = [format_number(row.ms, ".1f"), format_number(row.tokens, ".0f")]
            lines.append([f"{row.system} *" if row.is_baseline else row.system, *figures, *costs])
        tables.append((name, lines))
    return tables


def leaderboard_text(rows: Sequence[Row]) -> str:
    """The leaderboard for a terminal: a table per evaluation."""
    if not rows:
        return "No evaluation was made yet: dvc repro.\n"
    parts = []
    for name, table in _tables(rows, "\n", WIDE):
        lines = [
            line
            for cells in table
            for line in zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in lines]
        parts += [name, "─" * len(texts[0]), *(text.rstrip() for text in texts), ""]
    return "\n".join([*parts, LEGEND, ""])


def leaderboard_markdown(rows: Sequence[Row]) -> str:
    """The leaderboard as Markdown: a table per evaluation."""
    parts = []
    for name, (head, *lines) in _tables(rows, " "):
        parts += [f"### {as_plain(name)}", "", as_line(head), as_line(["---"] * len(head))]
        parts += [*map(as_line, lines), ""]
    return "\n".join([*parts, as_plain(LEGEND), ""]) if parts else leaderboard_text(rows)


def as_line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(as_plain, cells))} |"


def as_plain(text: str) -> str:
    """Text in which Markdown and HTML find nothing to do."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


# -- the command --------------------------------------------------------------------------


def read_provenance() -> dict[str, str]:
    """Which code and when; for the page only, which is no output of a stage."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        revision = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "not in a Git repository"
    rendered = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"revision": revision, "rendered": rendered, "command": "dvc repro"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the leaderboard, write the page. Exit status 2 with a message if that cannot be."""
    p = argparse.ArgumentParser(prog="python -m flows.report", description=main.__doc__)
    p.add_argument("--study", action="store_true", help="of the studies, below data/studies")
    args = p.parse_args(argv)
    from flows import dvc, lookahead  # dvc takes a second to import
    from flows.page import render_html

    try:
        evaluations = read_evaluations(study=args.study)
        measured = lookahead.section(lookahead.read_studies())
        stages = dvc.graph(["studies/dvc.yaml"] if args.study else [])
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    print(leaderboard_text(leaderboard_rows(evaluations)))
    edges = {name: stage.upstream for name, stage in stages.items()}
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    html = render_html(evaluations, edges, read_provenance(), measured)
    PAGE.write_text(html, encoding="utf-8")
    print(f"report: {PAGE.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
