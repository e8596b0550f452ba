"""Adaptive-Note's prompts and what is read from the replies.

The five of the paper in the form of ``stages.prompts``: two demonstrations, plain text, a reply
that ends with its line. The wording is ours, and shorter; inputs are the paper's. Of the four
criteria by which its reviewer compares notes one is asked for: whether a new fact helps.
"""

import json
import re
from collections.abc import Sequence
from typing import Literal

from stages.prompts import Order
from stages.text import split_sentences
from stages.types import Passage

MARKS = ("?", "？", "؟")  # that end a question

_AIDA = "In which country was the composer of Aida born?"
_RIVERS = "Which is longer, the Rhine or the Seine?"
_OPERA = "Aida is an opera by Giuseppe Verdi."
_RHINE = "The Rhine is 1,230 km long."
_VERDI = "Giuseppe Verdi was born in Le Roncole in Italy."
_SEINE = "The Seine is 775 km long."
_PASSAGES = {
    _OPERA: Passage("", "Aida", f"{_OPERA} It was first performed in Cairo."),
    _RHINE: Passage("", "Rhine", f"{_RHINE} Its source is in the Alps."),
    _VERDI: Passage("", "Giuseppe Verdi", f"{_VERDI} He died in Milan."),
    _SEINE: Passage("", "Seine", f"{_SEINE} It flows through Paris."),
}
_ASK_VERDI = "Where was Giuseppe Verdi born? What is the country of his place of birth?"
_ASK_RHINE, _ASK_SEINE = "How long is the Rhine?", "How long is the Seine? Where does it end?"


def init_prompt(question: str, passages: Sequence[Passage], order: Order) -> str:
    """The prompt for the first note; what follows is " note\\n"."""
    shots = [
        _lines([_PASSAGES[_OPERA]], order, Question=_AIDA, Note=_OPERA),
        _lines([_PASSAGES[_RHINE]], order, Question=_RIVERS, Note=_RHINE),
    ]
    return "\n\n".join([*shots, _lines(passages, order, Question=question, Note="")])


def propose_prompt(question: str, note: str, asked: Sequence[str]) -> str:
    """The prompt for two new questions; what follows is " Who? Where?\\n"."""
    form = {"Question": "", "Note": "", "Asked": "", "New questions": ""}
    shots = [
        {"Question": _AIDA, "Note": _OPERA, "Asked": "nothing", "New questions": _ASK_VERDI},
        {"Question": _RIVERS, "Note": _RHINE, "Asked": _ASK_RHINE, "New questions": _ASK_SEINE},
    ]
    given = form | {"Question": question, "Note": note, "Asked": " ".join(asked) or "nothing"}
    return "\n\n".join(_lines([], "best_last", **fields) for fields in (*shots, given))


def refine_prompt(question: str, passages: Sequence[Passage], note: str, order: Order) -> str:
    """The prompt for the note with what it lacks; what follows is " note\\n"."""
    new = "Better note"
    shots = [
        _lines([_PASSAGES[more]], order, Question=asked, Note=old, **{new: f"{old} {more}"})
        for asked, old, more in ((_AIDA, _OPERA, _VERDI), (_RIVERS, _RHINE, _SEINE))
    ]
    return "\n\n".join([*shots, _lines(passages, order, Question=question, Note=note, **{new: ""})])


def compare_prompt(question: str, first: str, second: str, form: Literal["choice", "text"]) -> str:
    """The prompt for the verdict whether the second note is clearly better than the first.

    ``NO_YES`` follows, or in the form of the paper ``{"status": "True"}``. Shown are a note with a
    new fact, and one that has grown by nothing that helps.
    """
    label = "Note 2 adds a new fact that helps" if form == "choice" else "Verdict"
    said = ("no", "yes") if form == "choice" else ('{"status": "False"}', '{"status": "True"}')
    shots = [
        (_AIDA, _OPERA, f"{_OPERA} {_VERDI}", said[1]),
        (_RIVERS, _RHINE, f"{_RHINE} Rivers are long.", said[0]),
    ]
    return "\n\n".join(
        _lines([], "best_last", Question=asked, **{"Note 1": a, "Note 2": b, label: verdict})
        for asked, a, b, verdict in (*shots, (question, first, second, ""))
    )


def _lines(passages: Sequence[Passage], order: Order, **fields: str) -> str:
    """A block of the prompt: a line per passage, a line per field, the last perhaps open."""
    shown = passages if order == "best_first" else passages[::-1]
    lines = [f"Passage: {p.title}. {p.text}" for p in shown]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\n".join(" ".join(line.split()) for line in lines)


# -- replies ----------------------------------------------------------------------------------

_JSON = re.compile(r"\{.*\}", re.DOTALL)
_VERDICT = re.compile(r"\W*(?:status\W+)?(true|false)\W*", re.IGNORECASE)


def parse_verdict(reply: str, rule: Literal["strict", "published"]) -> bool | None:
    """What a reply says; None if it says nothing that the rule knows (the caller takes False).

    Both rules read the outermost {...} with its "status". Without one, ``published`` (the
    authors' code) looks for "true" anywhere, and so takes "not true"; ``strict`` (ours) wants a
    reply that is a verdict and nothing else.
    """
    if found := _JSON.search(reply):
        try:
            status = str(json.loads(found[0])["status"]).strip().lower()
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        else:
            return status == "true" if status in ("true", "false") else None
    if rule == "published":
        return "true" in reply.lower()
    said = _VERDICT.fullmatch(reply)
    return said[1].lower() == "true" if said else None


def split_questions(proposal: str) -> list[str]:
    """The questions in a proposal, each once; all of it, where it has none."""
    sentences = (proposal[start:end] for start, end in split_sentences(proposal))
    return list(dict.fromkeys(s for s in sentences if s.endswith(MARKS))) or [proposal]
