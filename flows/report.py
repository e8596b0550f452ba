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
COSTS = {  # of a question, in metrics.json; all but tokens on the page and in Markdown alone
    "tokens": ("tokens/q", ".0f"), "walked": ("of them walked", ".0f"),
    "llm_calls": ("calls/q", ".1f"), "rounds": ("rounds/q", ".1f"), "docs": ("passages/q", ".1f"),
}  # fmt: skip
COUNTS = {"n", "failed", *COSTS}  # in metrics.json, and no measures
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
    costs: dict[str, float]  # per question; those of COSTS there are


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
        ms, costs = evaluation.ms.get(system), {c: metrics[c] for c in COSTS if c in metrics}
        rows.append(Row(evaluation.name, system, is_baseline, row, ms, costs))
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


def costs_of(rows: Sequence[Row]) -> list[str]:
    """The columns of costs for these rows: tokens, and the others that one of them has."""
    return [c for c in COSTS if c == "tokens" or any(c in r.costs for r in rows)]


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


def format_cost(row: Row, cost: str) -> str:
    """A number as its column has it, or '-'."""
    return format_number(row.costs.get(cost), COSTS[cost][1])


def _tables(
    rows: Sequence[Row], between: str, *, narrow: bool = False
) -> list[tuple[str, list[list[str]]]]:
    """Title and lines of cells (the first is the head) for each evaluation."""
    tables = []
    for name, group in groupby(rows, key=lambda r: r.evaluation):
        members = list(group)
        measures = [m for m in measures_of(members) if not narrow or m not in WIDE]
        named = ["tokens"] if narrow else costs_of(members)
        lines = [["system", *measures, "ms/query", *(COSTS[c][0] for c in named)]]
        for row in members:
            figures = [format_figure(row.figures.get(m), between) for m in measures]
            costs = [format_number(row.ms, ".1f"), *(format_cost(row, c) for c in named)]
            lines.append([f"{row.system} *" if row.is_baseline else row.system, *figures, *costs])
        tables.append((name, lines))
    return tables


def leaderboard_text(rows: Sequence[Row]) -> str:
    """The leaderboard for a terminal: a table per evaluation."""
    if not rows:
        return "No evaluation was made yet: dvc repro.\n"
    parts = []
    for name, table in _tables(rows, "\n", narrow=True):
        parts += _as_text(name, table)
    return "\n".join([*parts, LEGEND, ""])


def _as_text(title: str, table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table for a terminal."""
    lines = [
        line
        for cells in table
        for line in zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in lines]
    return [title, "─" * len(texts[0]), *(text.rstrip() for text in texts), ""]


def leaderboard_markdown(rows: Sequence[Row]) -> str:
    """The leaderboard as Markdown: a table per evaluation."""
    parts = []
    for name, table in _tables(rows, " "):
        parts += _as_markdown(name, table)
    return "\n".join([*parts, as_plain(LEGEND), ""]) if parts else leaderboard_text(rows)


def _as_markdown(title: str, table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    head, *lines = table
    rule = as_line(["---"] * len(head))
    return [f"### {as_plain(title)}", "", as_line(head), rule, *map(as_line, lines), ""]


def as_line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(as_plain, cells))} |"


def as_plain(text: str) -> str:
    """Text in which Markdown and HTML find nothing to do."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


# -- what loops did -----------------------------------------------------------------------


def round_cells(evaluation: Evaluation) -> list[list[str]]:
    """Support found within 1, 2 ... rounds, a line per system behind the head; none where nobody
    searched twice. A system that ended earlier stays where it was."""
    at = {(r["system"], r["round"]): r["recall"] for r in evaluation.rounds}
    systems, rounds = (list(dict.fromkeys(x)) for x in (zip(*at, strict=True) if at else ((), ())))
    lines = [[s, *(format_number(at[s, n], ".3f") for n in rounds)] for s in systems]
    return [["system", *(f"round {n}" for n in rounds)], *lines] if lines else []


def stop_cells(evaluation: Evaluation) -> list[list[str]]:
    """Questions by how they ended, a line per system behind the head; none where all of them ended
    alike."""
    reasons = list(dict.fromkeys(r for stops in evaluation.stops.values() for r in stops))
    if len(reasons) < 2:
        return []
    lines = [[s, *(str(stops.get(r, 0)) for r in reasons)] for s, stops in evaluation.stops.items()]
    return [["system", *reasons], *lines]


def loops_text(evaluations: Sequence[Evaluation], *, markdown: bool = False) -> str:
    """Both tables of every evaluation that has them; empty where none has."""
    write = _as_markdown if markdown else _as_text
    return "\n".join(
        line
        for e in evaluations
        for about, cells in (
            ("support found within so many rounds", round_cells(e)),
            ("how questions ended", stop_cells(e)),
        )
        if cells
        for line in write(f"{e.name}: {about}", cells)
    )


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
    p.add_argument("--markdown", action="store_true", help="print Markdown, with all costs")
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
    leaderboard = leaderboard_markdown if args.markdown else leaderboard_text
    print(leaderboard(leaderboard_rows(evaluations)))
    print(loops_text(evaluations, markdown=args.markdown))
    edges = {name: stage.upstream for name, stage in stages.items()}
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    html = render_html(evaluations, edges, read_provenance(), measured)
    PAGE.write_text(html, encoding="utf-8")
    print(f"report: {PAGE.resolve().as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
