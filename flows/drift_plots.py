"""The drift report's figures: how near each sign is to its limit, what came and went, which words.

HTML figures in the report's style (page.py); the flow shows them as images in its artifact.
"""

from collections.abc import Mapping
from html import escape

from flows import svg
from flows.drift import Drift, DriftPolicy

KINDS = ("new", "removed", "edited")
PER = 1_000  # words


def drift_figures(policy: DriftPolicy, drifts: Mapping[str, Drift]) -> list[str]:
    """Up to two figures for all corpora that moved, and one for the words of each."""
    moved = {corpus: d for corpus, d in drifts.items() if d.changes.share}
    if not moved:
        return []
    signs = {
        f"{corpus}: {sign}": [reached]
        for corpus, drift in moved.items()
        for sign, reached in reached_of_limits(policy, drift).items()
    }
    counts = {
        corpus: [float(len(getattr(drift.changes, kind))) for kind in KINDS]
        for corpus, drift in moved.items()
    }
    figures = [
        _bars("Reached of the limit", signs, ("reached",), "times the limit of retrain.drift"),
        _bars("Documents since the promotion", counts, KINDS, "documents"),
        *(_words(corpus, drift) for corpus, drift in moved.items() if drift.vocabulary.words),
    ]
    return [figure for figure in figures if figure]


def reached_of_limits(policy: DriftPolicy, drift: Drift) -> dict[str, float]:
    """What was found / its limit in ``retrain.drift``, by sign; a limit of 0 is left out.

    The embedding's test fires below its limit: there it is the limit / p.
    """
    changes, shift, found = drift
    pairs = {
        "documents": (changes.share, policy.changed),
        "removed": (len(changes.removed) / max(changes.before, 1), policy.deletions),
        "vocabulary": (shift.divergence, policy.vocabulary),
    }
    if found is not None:
        pairs["embedding"] = (policy.embedding, found.p)
    return {sign: value / limit for sign, (value, limit) in pairs.items() if limit}


def _bars(title: str, bars: Mapping[str, list[float]], parts: tuple[str, ...], label: str) -> str:
    if not bars:
        return ""
    x = svg.axis_from_zero(label, [sum(values) for values in bars.values()])
    names = (
        f'<li><svg class="swatch" viewBox="0 0 14 12" aria-hidden="true"><rect x="1" y="1" '
        f'width="12" height="10" fill="{svg.colour(i)}"/></svg>{escape(part)}</li>'
        for i, part in enumerate(parts)
    )
    legend = f'<ul class="legend">{"".join(names)}</ul>' if len(parts) > 1 else ""
    plot = svg.bar_plot(bars, parts, x, f"{title}; table above")
    return f"<figure><h3>{escape(title)}</h3>{plot}{legend}</figure>"


def _words(corpus: str, drift: Drift) -> str:
    """A point per word; on the diagonal it would be as frequent as before."""
    points = {word: (PER * a, PER * b) for word, a, b in drift.vocabulary.words}
    most = [max(pair) for pair in points.values()]
    x = svg.axis_from_zero(f"per {PER:,} words, before", most)
    y = svg.axis_from_zero(f"per {PER:,} words, now", most)
    title = f"Words that moved most: {corpus}"
    plot = svg.scatter_plot(points, dict.fromkeys(points, 0), x, y, f"{title}; table above")
    line = (  # both axes have the same scale
        f'<path class="grid" d="M{svg.LEFT} {svg.HEIGHT - svg.BOTTOM}'
        f'L{svg.WIDTH - svg.RIGHT} {svg.TOP}"/>'
    )
    plot = plot.removesuffix("</svg>") + line + "</svg>"
    return f"<figure><h3>{escape(title)}</h3>{plot}</figure>"
