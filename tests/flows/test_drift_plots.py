"""The drift report's figures: bars and points lie where the numbers say."""

import base64
import re
import xml.etree.ElementTree as ET

import pytest

from flows import svg
from flows.build import plot_images
from flows.drift import Changes, Discrepancy, Drift, DriftPolicy, Shift
from flows.drift_plots import drift_figures, reached_of_limits

POLICY = DriftPolicy(changed=0.1, deletions=0.2, vocabulary=0.05, embedding=0.01)
STILL = Drift(Changes(10, 10, [], [], []), Shift(0.0, []), None)
MOVED = Drift(
    Changes(10, 11, ["a", "b"], ["c"], []),
    Shift(0.1, [("gorse", 0.0, 0.02), ("<b>", 0.01, 0.005)]),
    Discrepancy(0.3, 0.002),
)


def test_reached_is_found_over_limit_and_limit_over_p() -> None:
    assert reached_of_limits(POLICY, MOVED) == pytest.approx(
        {
            "documents": (3 / 10) / 0.1,
            "removed": (1 / 10) / 0.2,
            "vocabulary": 0.1 / 0.05,
            "embedding": 0.01 / 0.002,
        }
    )
    assert "embedding" not in reached_of_limits(POLICY, STILL)
    assert "vocabulary" not in reached_of_limits(DriftPolicy(vocabulary=0), MOVED)


def test_nothing_that_moved_is_no_figure() -> None:
    assert drift_figures(POLICY, {}) == []
    assert drift_figures(POLICY, {"notes": STILL}) == []


def test_each_sign_and_each_kind_of_change_has_its_bar_with_its_number() -> None:
    limits, documents, words = drift_figures(POLICY, {"notes": MOVED, "calm": STILL})
    titles = re.findall(r"<title>(.*?)</title>", limits)
    assert titles == [
        "notes: documents: reached 3", "notes: removed: reached 0.5",
        "notes: vocabulary: reached 2", "notes: embedding: reached 5",
    ]  # fmt: skip
    widths = [float(w) for w in re.findall(r'<rect x="[\d.]+" y="\d+" width="([\d.]+)"', limits)]
    assert [w / widths[1] for w in widths] == pytest.approx([6, 1, 4, 10], rel=0.01)
    assert "notes: new 2" in documents and "notes: removed 1" in documents
    assert "calm" not in limits + documents + words


def test_a_word_stands_above_the_diagonal_if_it_became_more_frequent() -> None:
    words = drift_figures(POLICY, {"notes": MOVED})[2]
    (x, y), (other_x, other_y) = (
        (float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', words)
    )
    assert (x, y) == (svg.LEFT, svg.TOP), "gorse: from nothing to the most frequent"
    diagonal = (
        svg.HEIGHT
        - svg.BOTTOM
        - (other_x - svg.LEFT)
        * (svg.HEIGHT - svg.BOTTOM - svg.TOP)
        / (svg.WIDTH - svg.RIGHT - svg.LEFT)
    )
    assert other_y > diagonal, "below it: half as frequent as before"
    assert "&lt;b&gt;" in words and "<b>" not in words


def test_figures_become_images_that_are_whole_documents() -> None:
    images = plot_images("\n".join(drift_figures(POLICY, {"no<tes": MOVED})))
    assert len(images) == 3
    for image in images:
        encoded = re.search(r"base64,([^)]+)\)", image)[1]
        ET.fromstring(base64.b64decode(encoded))
