"""The report as one HTML page that needs nothing else: no script, no font, no picture is loaded.

Light and dark follow the reader's system. Every text from outside is escaped. Tables say all
that plots show.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from flows import svg
from flows.report import (
    COSTS,
    LEGEND,
    Evaluation,
    Figure,
    Row,
    costs_of,
    format_cost,
    format_number,
    leaderboard_rows,
    measures_of,
    round_cells,
    stop_cells,
)

STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --fg: #1d2126; --soft: #5c6670; --rule: #dfe3e6;
  --card: #ffffff; --good: #1b7a3d; --bad: #b3261e;
  --c0: #0b6bcb; --c1: #c43d50; --c2: #1f8a43; --c3: #a86200; --c4: #7446cc; --c5: #007a82;
  --c6: #a02f79; --c7: #59626d; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --fg: #e7eaed; --soft: #9aa5b0;
  --rule: #2e353c; --card: #1b1f24; --good: #6fd48b; --bad: #ff8a80;
  --c0: #6cb2ff; --c1: #ff8a96; --c2: #6fd48b; --c3: #f0b45b; --c4: #b79bff; --c5: #4fd0d6;
  --c6: #f08ad0; --c7: #aab4c0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 2rem 1.25rem 4rem; background: var(--bg);
  color: var(--fg); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .2rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
p { margin: .3rem 0 .8rem; } .soft, small { color: var(--soft); } a { color: var(--c0); }
nav a { margin-right: 1rem; } code { font: .88em ui-monospace, monospace; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .55rem; text-align: right; white-space: nowrap; vertical-align: top;
  border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; } tbody th { font-weight: 500; }
tr.baseline th::after { content: " (baseline)"; color: var(--soft); font-weight: 400; }
td small { display: block; line-height: 1.25; } .none { color: var(--soft); }
.better { color: var(--good); } .worse { color: var(--bad); }
svg { display: block; } .swatch { display: inline-block; width: 14px; height: 12px;
  vertical-align: -1px; margin-right: .4rem; }
.whisker { width: 90px; height: 10px; margin-left: auto; fill: var(--fg); }
.interval { stroke: var(--fg); stroke-width: 2; opacity: .55; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr));
  gap: 1rem; margin: 1rem 0; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); } figure svg { width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .5rem 0 0; padding: 0;
  list-style: none; font-size: .85rem; }
.grid { stroke: var(--rule); fill: none; } .line { fill: none; stroke-width: 1.8; }
text { fill: var(--fg); font: 12px system-ui, sans-serif; } .tick { fill: var(--soft); }
.axis { fill: var(--soft); } .mid { text-anchor: middle; } .end { text-anchor: end; }
.stage { fill: var(--card); stroke-width: 1.4; }
.edge { fill: none; stroke: var(--soft); opacity: .45; }
.graph text { font: 11px ui-monospace, monospace; } .graph svg { margin: .6rem; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
"""


class Section(NamedTuple):
    """A part of the page besides the evaluations."""

    anchor: str
    link: str
    html: str


def render_html(
    evaluations: Sequence[Evaluation],
    edges: Mapping[str, Sequence[str]],
    provenance: Mapping[str, str],
    more: Sequence[Section] = (),
) -> str:
    """The page. ``edges`` maps each stage to the stages that it reads; ``more`` stands behind the
    evaluations."""
    rows = leaderboard_rows(evaluations)
    links = [f'<a href="#{_anchor(e)}">{escape(e.name)}</a>' for e in evaluations]
    links += [f'<a href="#{s.anchor}">{escape(s.link)}</a>' for s in more]
    made = " · ".join(f"{escape(k)} <code>{escape(v)}</code>" for k, v in provenance.items())
    sections = [_section(e, [r for r in rows if r.evaluation == e.name]) for e in evaluations]
    if not evaluations:
        sections = ["<p>No evaluation was made yet: <code>dvc repro</code>.</p>"]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Quarry: leaderboard</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f'<header><h1>Quarry: leaderboard</h1>\n<p class="soft">{made}</p>',
            f'<nav>{" ".join(links)} <a href="#graph">graph</a></nav></header>\n<main>',
            *sections,
            *(section.html for section in more),
            '<h2 id="graph">The graph</h2>',
            '<p class="soft">A box per stage, right of all it reads; colours are rooms. '
            "An edge that others imply is not drawn.</p>",
            f'<div class="scroll graph">{svg.graph(edges)}</div>',
            "</main>\n</body>\n</html>\n",
        ]
    )


def _anchor(evaluation: Evaluation) -> str:
    return escape(f"on-{evaluation.name}", quote=True)


def _section(evaluation: Evaluation, rows: Sequence[Row]) -> str:
    """One evaluation: what it is, its table, its plots, its tests."""
    values = evaluation.values
    about = (
        f"corpus <code>{escape(str(values.get('corpus')))}</code> · split "
        f"<code>{escape(str(values.get('split')))}</code> · made by "
        f"<code>dvc repro evaluate@{escape(evaluation.name)}</code>"
    )
    numbers = {row.system: i for i, row in enumerate(rows)}
    plots = "\n".join(
        filter(
            None,
            [
                _recall_plot(evaluation, numbers),
                _rounds_plot(evaluation, numbers),
                *_cost_plots(evaluation, numbers),
            ],
        )
    )
    return "\n".join(
        [
            f'<section><h2 id="{_anchor(evaluation)}">{escape(evaluation.name)}</h2>',
            f'<p class="soft">{about}</p>',
            _leaderboard(rows, numbers),
            f'<p class="soft">{escape(LEGEND)}</p>',
            f'<div class="plots">{plots}</div>',
            _tests(evaluation),
            _recall_table(evaluation),
            _plain_table("Support found against rounds, the numbers", round_cells(evaluation)),
            _plain_table("How questions ended", stop_cells(evaluation)),
            "</section>",
        ]
    )


def as_table(head: Sequence[str], lines: Sequence[str]) -> str:
    """A table of these rows, which are HTML; the head is text."""
    columns = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def swatch(number: int) -> str:
    """A series' marker, for tables and legends."""
    mark = svg.marker(number, 7, 6)
    return f'<svg class="swatch" viewBox="0 0 14 12" aria-hidden="true">{mark}</svg>'


def _leaderboard(rows: Sequence[Row], numbers: Mapping[str, int]) -> str:
    measures, costs = measures_of(rows), costs_of(rows)
    scales = {m: _scale([r.figures[m] for r in rows if m in r.figures]) for m in measures}
    lines = []
    for row in rows:
        name = f'<th scope="row">{swatch(numbers[row.system])}{escape(row.system)}</th>'
        cells = [_figure(row.figures.get(m), scales[m]) for m in measures]
        cells += [_cell(format_number(row.ms, ".1f")), *(_cell(format_cost(row, c)) for c in costs)]
        kind = ' class="baseline"' if row.is_baseline else ""
        lines.append(f"<tr{kind}>{name}{''.join(cells)}</tr>")
    return as_table(["system", *measures, "ms/query", *(COSTS[c][0] for c in costs)], lines)


def _scale(figures: Sequence[Figure]) -> svg.Axis:
    """One scale for a column's intervals."""
    ends = [end for f in figures for end in (f.low, f.high) if end is not None]
    return svg.Axis("", min(ends, default=0.0), max(ends, default=1.0), ())


def _figure(figure: Figure | None, scale: svg.Axis) -> str:
    if figure is None:
        return '<td class="none">-</td>'
    kind = {"▲": "better", "▼": "worse"}.get(figure.mark, "")
    mark = f' <span class="{kind}">{figure.mark}</span>' if figure.mark else ""
    text = f"<strong>{figure.value:.3f}</strong>{mark}"
    if figure.n is not None:
        text += svg.whisker(figure.value, figure.low, figure.high, scale)
        text += f"<small>[{figure.low:.3f}–{figure.high:.3f}] n={figure.n}</small>"
    return f"<td>{text}</td>"


def _cell(text: str) -> str:
    return '<td class="none">-</td>' if text == "-" else f"<td>{text}</td>"


def _recall_plot(evaluation: Evaluation, numbers: Mapping[str, int]) -> str:
    if not evaluation.recall:
        return ""
    series = {
        system: sorted((r["k"], r["recall"]) for r in evaluation.recall if r["system"] == system)
        for system in numbers
    }
    depths = sorted({r["k"] for r in evaluation.recall})
    x = svg.Axis("k", depths[0], depths[-1], depths, log=True)
    y = svg.axis_from_zero("recall", [r["recall"] for r in evaluation.recall])
    plot = svg.line_plot(series, x, y, f"recall against k on {evaluation.name}; table below")
    return as_curves("Recall against k", plot, series, numbers)


def _rounds_plot(evaluation: Evaluation, numbers: Mapping[str, int]) -> str:
    if not evaluation.rounds:
        return ""
    series = {
        system: sorted(
            (r["round"], r["recall"]) for r in evaluation.rounds if r["system"] == system
        )
        for system in numbers
    }
    last = max(r["round"] for r in evaluation.rounds)
    x = svg.Axis("round", 1, last, range(1, last + 1))
    y = svg.axis_from_zero("support", [r["recall"] for r in evaluation.rounds])
    plot = svg.line_plot(series, x, y, f"support found against rounds on {evaluation.name}")
    return as_curves("Support found within so many rounds", plot, series, numbers)


def as_curves(
    title: str, plot: str, series: Mapping[str, Sequence[svg.Point]], numbers: Mapping[str, int]
) -> str:
    """A figure with a legend."""
    names = "".join(
        f"<li>{swatch(i)}{escape(system)}</li>" for system, i in numbers.items() if series[system]
    )
    return f'<figure><h3>{title}</h3>{plot}<ul class="legend">{names}</ul></figure>'


def _cost_plots(evaluation: Evaluation, numbers: Mapping[str, int]) -> list[str]:
    """Quality against tokens where any were spent, and against time where it was measured."""
    rows = [r for r in evaluation.cost if r["system"] in numbers]
    tokens = {r["system"]: r["tokens"] for r in rows}
    spent = {"tokens per question": tokens if any(tokens.values()) else {}}
    costs = spent | {"ms per query": dict(evaluation.ms)}
    plots = []
    for label, cost in costs.items():
        points = {
            r["system"]: (cost[r["system"]], r["quality"]) for r in rows if r["system"] in cost
        }
        if not points:
            continue
        measure = rows[0]["measure"]
        x = svg.axis_from_zero(label, [p[0] for p in points.values()])
        y = svg.axis_from_zero(measure, [p[1] for p in points.values()])
        title = f"{measure} against {label}"
        plot = svg.scatter_plot(points, numbers, x, y, f"{title} on {evaluation.name}")
        plots.append(f"<figure><h3>{escape(title)}</h3>{plot}</figure>")
    return plots


def _tests(evaluation: Evaluation) -> str:
    if not evaluation.comparisons:
        return ""
    head = ["system", "measure", "difference", "95 % interval", "n", "bootstrap p", "Holm"]
    lines = []
    for c in evaluation.comparisons:
        cells = [
            c["measure"], f"{c['difference']:+.3f}", f"[{c['low']:+.3f}, {c['high']:+.3f}]",
            str(c["n"]), f"{c['p_bootstrap']:.4f}", f"{c['p_bootstrap_holm']:.4f}",
            f"{c['p_permutation']:.4f}", f"{c['p_permutation_holm']:.4f}",
        ]  # fmt: skip
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(c["system"])}</th>{row}</tr>')
    baseline = escape(str(evaluation.values.get("baseline")))
    table = as_table([*head, "permutation p", "Holm"], lines)
    return (
        f"<details><summary>Tests against {baseline}, paired by question</summary>{table}</details>"
    )


def _recall_table(evaluation: Evaluation) -> str:
    if not evaluation.recall:
        return ""
    depths = sorted({r["k"] for r in evaluation.recall})
    at = {(r["system"], r["k"]): r["recall"] for r in evaluation.recall}
    lines = [
        f'<tr><th scope="row">{escape(system)}</th>'
        + "".join(f"<td>{at[system, k]:.3f}</td>" for k in depths)
        + "</tr>"
        for system in dict.fromkeys(r["system"] for r in evaluation.recall)
    ]
    table = as_table(["system", *(f"R@{k}" for k in depths)], lines)
    return f"<details><summary>Recall against k, the numbers</summary>{table}</details>"


def _plain_table(summary: str, cells: Sequence[Sequence[str]]) -> str:
    """A table of numbers that are not judged, folded; nothing where there is none."""
    if not cells:
        return ""
    head, *lines = cells
    rows = [
        f'<tr><th scope="row">{escape(system)}</th>'
        + "".join(f"<td>{n}</td>" for n in numbers)
        + "</tr>"
        for system, *numbers in lines
    ]
    return f"<details><summary>{summary}</summary>{as_table(head, rows)}</details>"
