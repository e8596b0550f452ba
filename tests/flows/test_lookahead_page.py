"""The report's section on lookahead, from measurements that are written down here."""

import json
import xml.etree.ElementTree as ET

import pytest
import yaml

from flows import svg
from flows.lookahead import read_studies, section
from flows.page import render_html

SERVED = {
    "none": {"n": 12, "seconds": 6.0, "model_s": 3.0, "retrieval_s": 2.5, "other_s": 0.5,
             "hit_rate": 0.0, "copied_mib": 0.0, "missed_mib": 0.4, "per_second": 0.167,
             "searches": 1.0},
    "gradual": {"n": 12, "seconds": 4.5, "model_s": 3.1, "retrieval_s": 0.9, "other_s": 0.5,
                "hit_rate": 0.75, "copied_mib": 0.5, "missed_mib": 0.1, "per_second": 0.222,
                "searches": 1.0, "speedup": 1.333, "speedup_low": 1.25, "speedup_high": 1.42,
                "retrieval_speedup": 2.78},
}  # fmt: skip
CALIBRATION = {
    "window_s": 2.0,
    "fetch_over_window": 1.1,
    "budget_mib": 0.5,
    "expected_speedup": 1.4,
}
HITS = [
    {"system": "expected", "mib": 0.0, "hit_rate": 0.0},
    {"system": "expected", "mib": 1.0, "hit_rate": 0.9},
    {"system": "measured", "mib": 0.5, "hit_rate": 0.75},
]


@pytest.fixture
def project(tmp_path):
    """Two pipelines, of which one was measured, and a study of budgets."""
    entries = {
        "hyde": {"run": "c/hyde"}, "self-rag": {"run": "c/self-rag"},
        "hyde-budget": {"run": "c/hyde", "budget_mib": [0.5, 1.0]},
        "hyde-batch": {"run": "c/hyde", "batch": [1, 2]},
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"studies": {"latency": entries}}))
    for name in ("hyde", "hyde-budget"):
        folder = tmp_path / "measured" / name
        folder.mkdir(parents=True)
        said = {
            "calibration": CALIBRATION,
            "served": dict(sorted(SERVED.items())),
            "machine": {"cores": 2, "load": 3.2},
        }
        (folder / "metrics.json").write_text(json.dumps(said))
        (folder / "hit_rate.json").write_text(json.dumps(HITS))
        bars = [{"system": system, **figures} for system, figures in SERVED.items()]
        (folder / "latency.json").write_text(json.dumps(bars))
    return tmp_path


def rendered(project) -> str:
    studies = read_studies(params=project / "params.yaml", folder=project / "measured")
    return render_html([], {}, {}, section(studies))


def rows(html: str, title: str) -> list[list[str]]:
    """Cells of the rows whose first cell is ``title``."""
    body = html[html.index("<body>") : html.index("</body>")] + "</body>"
    tree = ET.fromstring(body)
    found = [["".join(c.itertext()) for c in tr] for tr in tree.iter("tr")]
    return [cells for cells in found if cells and cells[0] == title]


def test_a_pipeline_has_a_row_with_and_without_and_what_was_not_measured_is_a_dash(project):
    html = rendered(project)
    (hyde,) = rows(html, "hyde")
    assert hyde[1:7] == ["12", "6.00", "4.50", "1.33 [1.25–1.42]", "1.40", "2.78"]
    assert hyde[-1] == "3.2", "how busy the machine was stands beside the figures"
    (unmeasured,) = rows(html, "self-rag")
    assert set(unmeasured[1:]) == {"-"}


def test_other_studies_have_a_row_per_condition_and_their_command(project):
    html = rendered(project)
    assert "dvc repro studies/dvc.yaml:latency@hyde-budget" in html
    assert "2 cores, load 3.2" in html
    assert html.index("hyde-budget") < html.index('row">none<') < html.index('row">gradual<')
    (none,), (gradual,) = rows(html, "none"), rows(html, "gradual")
    assert none[-1] == "-" and gradual[-1] == "1.33 [1.25–1.42]"
    (dashes,) = rows(html, "-")  # hyde-batch
    assert set(dashes) == {"-"}


def test_plots_are_bars_of_parts_and_curves_of_hit_rates(project):
    html = rendered(project)
    assert "<title>hyde gradual: retrieval 0.9</title>" in html
    assert "<title>hyde none: retrieval 2.5</title>" in html
    assert "expected: hit rate 0.900 at budget of a window, MiB 1" in html
    assert "measured: hit rate 0.750 at budget of a window, MiB 0.5" in html
    assert '<a href="#lookahead">Serving: look-ahead</a>' in html
    assert html.count('<h2 id="lookahead">') == 1


def test_a_catalogue_without_such_studies_has_no_section(tmp_path):
    (tmp_path / "params.yaml").write_text("evaluate: {}\n")
    assert section(read_studies(params=tmp_path / "params.yaml")) == []
    assert "look-ahead" not in render_html([], {}, {}, [])


def test_parts_of_a_bar_lie_one_after_the_other_and_are_as_long_as_their_values():
    x = svg.Axis("seconds", 0, 10, [0, 5, 10])
    drawn = ET.fromstring(svg.bar_plot({"a<b": [2.0, 3.0]}, ["one", "two"], x, "bars"))
    first, second = list(drawn.iter("rect"))
    assert float(second.get("x")) == pytest.approx(
        float(first.get("x")) + float(first.get("width")), abs=0.11
    )
    assert float(second.get("width")) / float(first.get("width")) == pytest.approx(1.5, abs=0.01)
    assert [t.text for t in drawn.iter("title")] == ["a<b: one 2", "a<b: two 3"]
    assert "5" in [t.text for t in drawn.iter("text")], "the sum stands beside the bar"
