"""The committed figures of the default graph are those of expected.yaml, and so is their order.

A figure moves with a library or a recipe: then the row moves with it, and says why. What must not
happen is that it moves and nobody says so, or that a method stands here without its ablation.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = yaml.safe_load(Path(__file__).with_name("expected.yaml").read_text(encoding="utf-8"))
ROWS = [
    pytest.param(corpus, row, id=row["system"]) for corpus, rows in EXPECTED.items() for row in rows
]
KEYS = {"system", "n", "expected", "above", "not_above", "role", "reason"}
COSTS = {"failed", "llm_calls", "tokens"}  # neither better nor worse
THEIRS = "mine"  # the user's own corpus: whatever it scores is right


def metrics_of(corpus: str) -> dict[str, dict[str, float]]:
    path = ROOT / "data/evaluate" / corpus / "metrics.json"
    assert path.is_file(), f"{path} is missing; make it with: dvc repro evaluate@{corpus}"
    return json.loads(path.read_text(encoding="utf-8"))


def figures_of(corpus: str, system: str) -> dict[str, float]:
    there = metrics_of(corpus)
    assert system in there, (
        f"expected.yaml has a row for {system}; data/evaluate/{corpus}/metrics.json has "
        f"{', '.join(there)}. Make it with: dvc repro evaluate@{corpus}, or take the row out."
    )
    return there[system]


def differences(row: dict[str, Any], figures: dict[str, float]) -> list[str]:
    """In words, where the figures are not those of the row."""
    said = [] if figures.get("n") == row["n"] else [f"n is {figures.get('n')}, not {row['n']}"]
    for measure, (value, tolerance) in row["expected"].items():
        if measure not in figures:
            said.append(f"{measure} is absent; there are: {', '.join(figures)}")
        elif abs(figures[measure] - value) > tolerance:
            said.append(f"{measure} is {figures[measure]}, expected {value} ± {tolerance}")
    return said


def below(row: dict[str, Any], metrics: dict[str, dict[str, float]]) -> list[str]:
    """In words, what the row says that it beats and does not."""
    mine = metrics[row["system"]]
    return [
        f"{measure} {mine[measure]} is not above that of {other}, {metrics[other][measure]}"
        for other, measures in row.get("above", {}).items()
        for measure in measures
        if not mine[measure] > metrics[other][measure]
    ]


@pytest.mark.parametrize(("corpus", "row"), ROWS)
def test_a_system_scores_what_its_row_says(corpus: str, row: dict[str, Any]) -> None:
    said = differences(row, figures_of(corpus, row["system"]))
    assert not said, f"{row['system']}: {'; '.join(said)}. The row's reason: {row['reason']}"


@pytest.mark.parametrize(("corpus", "row"), [p for p in ROWS if "above" in p.values[1]])
def test_a_method_beats_what_its_row_says_it_beats(corpus: str, row: dict[str, Any]) -> None:
    """Fusion its parts, the tuned encoder the untuned one, DPO the reader, passages none."""
    for system in (row["system"], *row["above"]):
        figures_of(corpus, system)
    said = below(row, metrics_of(corpus))
    assert not said, f"{row['system']}: {'; '.join(said)}. Or say so under not_above, and why."


def test_every_evaluated_system_has_a_row() -> None:
    """Of entries in params.yaml, so that a new corpus without a row fails too."""
    entries = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["evaluate"]
    entries.pop(THEIRS, None)
    measured = {(corpus, system) for corpus in entries for system in metrics_of(corpus)}
    written = {(corpus, row["system"]) for corpus, rows in EXPECTED.items() for row in rows}
    assert measured <= written, f"no row in expected.yaml: {sorted(measured - written)}"
    assert {corpus for corpus, _ in written} <= set(entries), "a corpus that nobody evaluates"


@pytest.mark.parametrize(("corpus", "row"), ROWS)
def test_a_row_says_why_and_stands_beside_its_baseline(corpus: str, row: dict[str, Any]) -> None:
    rows = {r["system"]: r for r in EXPECTED[corpus]}
    assert set(row) <= KEYS and len(row["reason"]) > 10
    assert len(rows) == len(EXPECTED[corpus]), "a system has two rows"
    above, not_above = row.get("above", {}), row.get("not_above", {})
    compared = set(above) | set(not_above)
    assert compared or row.get("role") in ("baseline", "ablation"), "name what it is compared with"
    for other in compared:
        both = set(row["expected"]) & set(rows[other]["expected"]) - COSTS
        for measure in both:
            where = (measure in above.get(other, ())) + (measure in not_above.get(other, {}))
            assert where == 1, f"{measure}: is it above {other} or not? Say one, and why if not"
        named = {*above.get(other, ()), *not_above.get(other, {})}
        assert both and named == both, f"{named ^ both} is not expected of both"


def test_a_moved_figure_an_absent_one_and_a_lost_lead_are_named() -> None:
    """The tests above would say something: each kind of failure, in words."""
    row = {"system": "new", "n": 96, "expected": {"nDCG@10": [0.5, 0.03], "EM": [0.1, 0.03]},
           "above": {"old": ["nDCG@10"]}}  # fmt: skip
    figures = {"nDCG@10": 0.46, "n": 95}
    assert differences(row, figures) == [
        "n is 95, not 96",
        "nDCG@10 is 0.46, expected 0.5 ± 0.03",
        "EM is absent; there are: nDCG@10, n",
    ]
    assert below(row, {"new": figures, "old": {"nDCG@10": 0.46}}) == [
        "nDCG@10 0.46 is not above that of old, 0.46"
    ]
