"""The drift report and the gate's decision as Markdown: everything that was looked at, in order."""

from collections.abc import Mapping

from flows.drift import Drift, Verdict
from flows.gate import Decision, Reason
from flows.report import as_line, as_plain

SHOWN = 10  # documents of a kind that are named


def drift_markdown(verdict: Verdict, drifts: Mapping[str, Drift]) -> str:
    """What moved since the promotion, and which of it is a reason to retrain."""
    title = "Retraining is worth it" if verdict.worth else "Retraining is not worth it"
    if verdict.stopped:
        title = "Retraining was stopped"
    parts = [f"### {title}", "", *(f"**{as_plain(text)}**\n" for text in verdict.stopped)]
    parts += [as_line(["what", "where", "reason", "found"]), as_line(["---"] * 4)]
    parts += [
        as_line([t.what, t.where or "-", "yes" if t.fires else "no", t.text])
        for t in verdict.triggers
    ]
    for corpus, drift in drifts.items():
        parts += ["", f"#### {as_plain(corpus)}", ""]
        for kind in ("new", "removed", "edited"):
            names = getattr(drift.changes, kind)
            rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"- {len(names)} {kind}: {as_plain(', '.join(names[:SHOWN]))}{rest}")
        if drift.vocabulary.words:
            parts += ["", as_line(["word", "share before", "share now"]), as_line(["---"] * 3)]
            parts += [as_line([w, f"{a:.5f}", f"{b:.5f}"]) for w, a, b in drift.vocabulary.words]
    return "\n".join([*parts, ""])


def decision_markdown(decision: Decision) -> str:
    """The gate's decision and all its reasons, refusals marked."""
    title = "Accepted" if decision.accepted else f"Refused, {len(decision.refusals)} reasons"
    head = ["", "corpus", "check", "promoted", "candidate", "limit", "p", "reason"]
    parts = [f"### {title}", "", as_line(head), as_line(["---"] * len(head))]
    for r in decision.reasons:
        numbers = (_number(r.promoted), _number(r.candidate), _number(r.limit), _number(r.p))
        parts.append(
            as_line(["ok" if r.passed else "REFUSED", r.corpus, r.check, *numbers, r.text])
        )
    return "\n".join([*parts, ""])


def decision_text(decision: Decision) -> str:
    """Every refusal on a line of its own, for messages and hooks; or that there is none."""
    lines = [f"{r.corpus}: {r.check}: {r.text} ({_numbers(r)})" for r in decision.refusals]
    return "\n".join(lines) or f"accepted, {len(decision.reasons)} reasons"


def _numbers(reason: Reason) -> str:
    pair = f"{_number(reason.promoted)} -> {_number(reason.candidate)}"
    return pair if reason.p is None else f"{pair}, p = {reason.p:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
