"""The leaderboard in three dresses, from results that are written down here."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows.page import render_html
from flows.report import (
    Evaluation,
    leaderboard_markdown,
    leaderboard_rows,
    leaderboard_text,
    loops_text,
    read_evaluations,
)
from stages import shell, tables
from stages.digest import folder_digest

ROOT = Path(__file__).parents[2]


def figure(system: str, measure: str, value: float, n: int) -> dict:
    spread = {"low": value - 0.05, "high": value + 0.05, "n": n}
    return {"system": system, "measure": measure, "value": value} | spread


def comparison(system: str, difference: float, p: float) -> dict:
    test = {"p_bootstrap": p, "p_bootstrap_holm": p, "p_permutation": p, "p_permutation_holm": p}
    row = {"system": system, "baseline": "bm25", "measure": "nDCG@10", "n": 225}
    return row | {"difference": difference, "low": difference, "high": difference} | test


METRICS = {
    "bm25": {"nDCG@10": 0.375757, "n": 225},
    "dense": {"nDCG@10": 0.4, "n": 225},
    "weak": {"nDCG@10": 0.3, "n": 225},
    "rag": {"nDCG@10": 0.35, "EM": 0.25, "F1": 0.5, "SupportR": 0.75, "n": 64}
    | {"tokens": 312.4, "llm_calls": 1.0, "failed": 0},
    "closed": {"EM": 0.125, "F1": 0.25, "n": 64, "tokens": 48.0, "llm_calls": 1.0, "failed": 0},
}
CRANFIELD = Evaluation(
    name="cranfield",
    values={"corpus": "cranfield", "split": "test", "baseline": "bm25"},
    metrics=METRICS,
    figures=[
        figure(system, measure, value, metrics["n"])
        for system, metrics in METRICS.items()
        for measure, value in metrics.items()
        if measure in {"nDCG@10", "EM", "F1", "SupportR"}
    ],
    comparisons=[
        comparison("dense", 0.024, 0.01),
        comparison("weak", -0.076, 0.001),
        comparison("rag", -0.026, 0.4),
    ],
    recall=[
        {"system": system, "k": k, "recall": 0.1 * at}
        for system in ("bm25", "dense", "weak", "rag")
        for at, k in enumerate((1, 10, 100), 1)
    ],
    cost=[
        {"system": "rag", "tokens": 312.4, "quality": 0.5, "measure": "F1"},
        {"system": "closed", "tokens": 48.0, "quality": 0.25, "measure": "F1"},
    ],
    ms={"bm25": 1.25, "rag": 480.0, "closed": 160.0},
)
EDGES = {"ingest@c": (), "serve@bm25": ("ingest@c",), "evaluate@c": ("ingest@c", "serve@bm25")}
MADE_BY = {"revision": "abc123", "rendered": "today"}


def page(*evaluations: Evaluation) -> str:
    return render_html(evaluations, EDGES, MADE_BY)


def test_the_best_ranking_is_first_and_systems_without_one_are_last():
    systems = [row.system for row in leaderboard_rows([CRANFIELD])]
    assert systems == ["dense", "bm25", "rag", "weak", "closed"]


def test_the_terminal_table_has_interval_n_and_mark_beside_every_figure():
    lines = leaderboard_text(leaderboard_rows([CRANFIELD])).splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[0] == ["cranfield"]
    assert cells[2] == ["system", "nDCG@10", "R@100", "EM", "F1", "ms/query", "tokens/q"]
    assert cells[3] == ["dense", "0.400 ▲", "-", "-", "-", "-", "-"]
    assert cells[4] == ["[0.350–0.450] n=225"]
    assert cells[5] == ["bm25 *", "0.376", "-", "-", "-", "1.2", "-"]
    assert cells[7] == ["rag", "0.350", "-", "0.250", "0.500", "480.0", "312"]  # p = 0.4: no mark
    assert cells[8] == [f"[{i}] n=64" for i in ("0.300–0.400", "0.200–0.300", "0.450–0.550")]
    assert cells[9][:2] == ["weak", "0.300 ▼"]
    assert cells[11] == ["closed", "-", "-", "0.125", "0.250", "160.0", "48"]
    assert max(map(len, lines)) <= 120


def test_a_clone_without_the_cache_shows_values_without_intervals():
    bare = CRANFIELD._replace(figures=[], comparisons=[], recall=[], cost=[], ms={})
    text = leaderboard_text(leaderboard_rows([bare]))
    assert re.search(r"^bm25 \* +0\.376 +-", text, re.MULTILINE)
    assert "<strong>0.376</strong></td>" in page(bare)


def test_markdown_is_one_table_per_evaluation_and_cells_cannot_break_it():
    odd = CRANFIELD._replace(name="o|dd", metrics={"a|b_<i>": {"nDCG@10": 0.5, "n": 1}}, figures=[])
    text = leaderboard_markdown(leaderboard_rows([CRANFIELD, odd]))
    assert text.count("### ") == text.count("| --- | --- | --- | --- | --- | --- |") == 2
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows[:7]} == {9 + 1}
    assert rows[-1] == "| a&#124;b&#95;&#60;i&#62; | 0.500 | - | - | - | - | - |"


def test_nothing_made_yet_is_said():
    assert "dvc repro" in leaderboard_text([])
    assert "dvc repro" in leaderboard_markdown([])
    assert "dvc repro" in page()


class Balanced(HTMLParser):
    """Fails on a tag that is not closed; collects what the page would load."""

    VOID = {"meta"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in {"src", "href", "data", "srcset", "xlink:href"}]
        assert tag not in {"script", "link", "img", "iframe", "object"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_loads_nothing():
    html = page(CRANFIELD)
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert all(link.startswith("#") for link in parser.loads)
    assert "url(" not in html
    assert "@import" not in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(svg)


def test_the_page_escapes_what_comes_from_outside():
    evil = '<script>alert("1")</script>'
    names = {"bm25": evil, "rag": evil + "2"}
    html = render_html(
        [
            CRANFIELD._replace(
                name=evil,
                values={"corpus": evil, "split": evil, "baseline": evil},
                metrics={names.get(s, s): m for s, m in METRICS.items()},
                figures=[],
                comparisons=[comparison(evil, 0.1, 0.01)],
                recall=[{"system": evil, "k": k, "recall": 0.5} for k in (1, 10)],
                cost=[{"system": evil, "tokens": 9.0, "quality": 0.5, "measure": evil}],
            )
        ],
        {evil: (), "serve@x": (evil,)},
        {"revision": evil},
    )
    assert "<script" not in html
    parser = Balanced()
    parser.feed(html)
    assert parser.text.count(evil) >= 8


def test_every_figure_on_the_page_has_its_interval_and_n():
    html = page(CRANFIELD)
    assert html.count("<strong>") == len(CRANFIELD.figures)
    assert html.count("<small>[") == len(CRANFIELD.figures)
    assert "<small>[0.326–0.426] n=225</small>" in html


def test_quality_is_plotted_against_tokens_and_time_where_there_are_some():
    assert "F1 against tokens per question" in page(CRANFIELD)
    assert "F1 against ms per query" in page(CRANFIELD)
    free = CRANFIELD._replace(cost=[c | {"tokens": 0.0} for c in CRANFIELD.cost], ms={})
    assert "against tokens" not in page(free)
    assert "against ms" not in page(free)


def test_the_graph_has_a_box_per_stage_and_no_edge_that_others_imply():
    html = page(CRANFIELD)
    assert html.count('class="stage"') == 3
    assert html.count('class="edge"') == 2  # ingest -> evaluate goes through serve
    assert "<title>evaluate@c reads ingest@c, serve@bm25</title>" in html


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project in which one evaluation of two was made."""
    monkeypatch.chdir(tmp_path)
    entry = "{suite: standard, corpus: c, fused: none, split: test, baseline: bm25, runs: [bm25]}"
    Path("params.yaml").write_text(f"evaluate:\n  made: {entry}\n  not-yet: {entry}\n")
    Path("data/evaluate/made").mkdir(parents=True)
    for part in ("metrics", "recall", "cost"):
        shell.write_json(Path(f"data/evaluate/made/{part}.json"), getattr(CRANFIELD, part))
    tests = {"figures": CRANFIELD.figures, "comparisons": CRANFIELD.comparisons}
    shell.write_json(Path("data/evaluate/made/comparisons.json"), tests)
    Path("data/runs/c/bm25").mkdir(parents=True)
    tables.write_table(tables.empty_table("runs"), Path("data/runs/c/bm25"), "runs")
    return tmp_path


def time_serve(system: str, outputs: str) -> None:
    path = Path(f".quarry/timings/serve/{system}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"ms_per_query": 2.5, "outputs": outputs}))


def test_time_is_shown_only_for_the_run_that_it_was_measured_on(project):
    time_serve("bm25", folder_digest(Path("data/runs/c/bm25")))
    time_serve("dense", "0" * 32)
    (made,) = read_evaluations()
    assert made == CRANFIELD._replace(name="made", values=made.values, ms={"bm25": 2.5})
    time_serve("bm25", "0" * 32)
    assert read_evaluations()[0].ms == {}


def test_a_result_without_its_entry_is_not_shown(project):
    Path("data/evaluate/made").rename("data/evaluate/renamed")
    assert read_evaluations() == []


def test_the_command_prints_the_table_and_writes_the_page(project):
    stage = "{cmd: 'true', outs: [{data/evaluate/made: {cache: false}}]}"
    Path("dvc.yaml").write_text(f"stages:\n  made: {stage}\n")
    run = {"cwd": project, "env": {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, "check": True}
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], **run)
    curve = [{"system": "rag", "round": n, "recall": r} for n, r in ((1, 0.25), (2, 0.75))]
    shell.write_json(Path("data/evaluate/made/rounds.json"), curve)
    done = subprocess.run(
        [sys.executable, "-m", "flows.report"], capture_output=True, text=True, **run
    )
    assert "[0.326–0.426] n=225" in done.stdout
    assert "made: support found within so many rounds" in done.stdout and "0.750" in done.stdout
    written = project / ".quarry/report/index.html"
    assert done.stdout.splitlines()[-1] == f"report: {written.as_uri()}"
    assert "0.376" in written.read_text()


def test_rounds_are_drawn_and_endings_told_where_there_is_something_to_tell():
    assert "rounds" not in page(CRANFIELD) and "How questions ended" not in page(CRANFIELD)
    rounds = [{"system": "rag", "round": n, "recall": r} for n, r in ((1, 0.25), (2, 0.75))]
    stops = {"rag": {"fails": 40, "fixed": 24}, "closed": {"fixed": 64}}
    html = page(CRANFIELD._replace(rounds=rounds, stops=stops))
    assert "rag: support 0.750 at round 2" in html
    cells = re.search(r"How questions ended</summary>.*?</table>", html, re.DOTALL)[0]
    assert re.findall(r"<td>(\d+)</td>", cells) == ["40", "24", "0", "64"]
    cells = re.search(r"against rounds, the numbers</summary>.*?</table>", html, re.DOTALL)[0]
    assert re.findall(r"<td>([\d.]+)</td>", cells) == ["0.250", "0.750"]


def test_loops_are_told_as_text_and_as_markdown():
    rounds = [
        {"system": s, "round": n, "recall": r}
        for s, curve in (("rag", (0.25, 0.25)), ("kirag", (0.25, 0.75)))
        for n, r in enumerate(curve, 1)
    ]
    stops = {"rag": {"fixed": 64}, "kirag": {"budget_docs": 40, "fixed": 24}}
    evaluation = CRANFIELD._replace(rounds=rounds, stops=stops)
    lines = loops_text([CRANFIELD, evaluation]).splitlines()
    assert lines[0] == "cranfield: support found within so many rounds"
    assert [line.split() for line in lines if line.startswith(("rag", "kirag"))] == [
        ["rag", "0.250", "0.250"], ["kirag", "0.250", "0.750"],
        ["rag", "64", "0"], ["kirag", "24", "40"],
    ]  # fmt: skip
    assert "| kirag | 0.250 | 0.750 |" in loops_text([evaluation], markdown=True).splitlines()
    assert loops_text([CRANFIELD]) == ""


def test_every_cost_has_a_column_where_a_system_has_it():
    """In Markdown and on the page; a terminal has room for tokens alone."""
    metrics = METRICS | {"loop": METRICS["rag"] | {"docs": 7.4, "rounds": 2.6, "walked": 250.0}}
    evaluation = CRANFIELD._replace(metrics=metrics)
    rows = leaderboard_rows([evaluation])
    head, _, *lines = leaderboard_markdown(rows).splitlines()[2:]
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    loop = next(line for line in lines if line.startswith("| loop"))
    told = dict(zip(columns, (cell.strip() for cell in loop.strip("|").split("|")), strict=True))
    assert (told["tokens/q"], told["of them walked"], told["calls/q"]) == ("312", "250", "1.0")
    assert (told["rounds/q"], told["passages/q"]) == ("2.6", "7.4")
    html = page(evaluation)
    assert "passages/q" in html and "<td>7.4</td>" in html
    assert "passages/q" not in leaderboard_text(rows)
    plain = leaderboard_markdown(leaderboard_rows([CRANFIELD]))
    assert "calls/q" in plain and "passages/q" not in plain and "walked" not in plain
