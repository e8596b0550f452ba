"""A question's triples from its text alone, by rules: the form of English questions over facts.

Where a method has no large model, the question's triples come from its wording, as at test time
they must: a question's own chain is never looked at. A grammar says for each relation of a triple
table how its object is asked for and spoken of; in the place of a name another such phrase may
stand, so chains are read from the outside in. ``FORMS`` holds the relations of the synthetic world
(a test holds it against that world's templates); "the R of X", possessives and comparisons are
read for any R. A question of another form has no triples here: for those there is ``mode: llm``.
"""

import re
from typing import NamedTuple

from stages.gaps import MOST_TRIPLES, OR, Fact, Rule

# fmt: off
FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # asked for; spoken of
    "born in": (
        ("where was {} born", "in which town was {} born"),
        ("the birthplace of {}", "the town where {} was born"),
    ),
    "works for": (
        ("who employs {}", "which company does {} work for"),
        ("the employer of {}", "the company that {} works for"),
    ),
    "married to": (
        ("who is {} married to", "who is the spouse of {}"),
        ("the spouse of {}", "the person married to {}"),
    ),
    "studied under": (
        ("who taught {}", "whose pupil was {}"),
        ("the teacher of {}", "the person who taught {}"),
    ),
    "year of birth": (("in which year was {} born", "what is the year of birth of {}"), ()),
    "based in": (
        ("where is {} based", "in which town is the head office of {}"),
        ("the home town of {}", "the town where {} has its head office"),
    ),
    "founded by": (
        ("who founded {}", "who was the founder of {}"),
        ("the founder of {}", "the person who founded {}"),
    ),
    "year of foundation": (
        ("in which year was {} founded", "what is the year of foundation of {}"), (),
    ),
    "mayor": (
        ("who is the mayor of {}", "who governs {}"),
        ("the mayor of {}", "the person who governs {}"),
    ),
    "twinned with": (
        ("which town is twinned with {}", "what is the twin town of {}"),
        ("the twin town of {}", "the town twinned with {}"),
    ),
}
_YEARS = f"year of birth{OR}year of foundation"  # of whom or of what, the wording does not say
COMPARED: dict[str, tuple[str, Rule]] = {
    "who was born earlier, {} or {}": ("year of birth", "least"),
    "who was born later, {} or {}": ("year of birth", "most"),
    "which was founded earlier, {} or {}": ("year of foundation", "least"),
    "which was founded later, {} or {}": ("year of foundation", "most"),
    "which of {} and {} is older": (_YEARS, "least"),
    "which of {} and {} is younger": (_YEARS, "most"),
}
# fmt: on


def _compile(form: str) -> re.Pattern[str]:
    return re.compile("(.+)".join(map(re.escape, form.split("{}"))), re.IGNORECASE)


_ASKED = [(_compile(form), rel) for rel, (asked, _) in FORMS.items() for form in asked]
_SPOKEN = [(_compile(form), rel) for rel, (_, spoken) in FORMS.items() for form in spoken]
_COMPARED = [(_compile(form), *how) for form, how in COMPARED.items()]
_SAME = _compile("do {} and {} have the same {}")
_PLAIN = re.compile(r"(?:who|what|which [a-z ]+?) (?:is|was|are|were) (.+)", re.IGNORECASE)
# Inside a phrase no relation begins with a capital: of "the Lord of the Rings" nothing is peeled.
_NESTED = re.compile(r"(?:the )?(?!the )([a-z].*?) of (.+)")
_OUTERMOST = re.compile(r"the (\w.*?) of (.+)")
# A part of a sentence, not a name: what a form has cut out of a question that it does not fit.
_NO_NAME = re.compile(r",|\b(?:or|that|which|who|whose|where|when)\b", re.IGNORECASE)


class Reading(NamedTuple):
    """A question's triples in hop order, and how the answer follows from their values."""

    triples: list[Fact]
    rule: Rule = "value"  # of the last variable; or a comparison of the two


def read_question(text: str) -> Reading:
    """The triples of a question whose form is known; none of another."""
    reading = _read(text)
    names = [fact.subj for fact in reading.triples if not fact.subj.startswith("?")]
    return Reading([]) if any(map(_NO_NAME.search, names)) else reading


def _read(text: str) -> Reading:
    asked = " ".join(text.split()).rstrip("?. ")
    for pattern, rel, rule in _COMPARED:
        if found := pattern.fullmatch(asked):
            return Reading(_parallel(rel, *found.groups()), rule)
    if found := _SAME.fullmatch(asked):
        a, b, rel = found.groups()
        return Reading(_parallel(rel, a, b), "same")
    for pattern, rel in _ASKED:
        if found := pattern.fullmatch(asked):
            return Reading(_chain(found[1], [rel]))
    if found := _PLAIN.fullmatch(asked):
        about, step = found[1], _OUTERMOST.fullmatch(found[1])
        known = any(pattern.fullmatch(about) for pattern, _ in _SPOKEN)
        return Reading(_chain(step[2], [step[1]]) if step and not known else _chain(about, []))
    return Reading([])


def _parallel(rel: str, *names: str) -> list[Fact]:
    return [Fact(name, rel, f"?{i}") for i, name in enumerate(names, start=1)]


def _chain(about: str, rels: list[str]) -> list[Fact]:
    """What a phrase speaks of, then the relations that are asked of it: (X; R1; ?1), (?1; R2; ?2).

    Nothing where there are more than four.
    """
    while (step := _peel(about)) is not None:
        rel, about = step
        rels = [rel, *rels]
    name, *owned = about.split("'s ")
    rels = owned + rels
    ends = [name, *(f"?{i}" for i in range(1, len(rels) + 1))]
    chain = [Fact(a, r, b) for a, r, b in zip(ends, rels, ends[1:], strict=False)]
    return chain if len(chain) <= MOST_TRIPLES else []


def _peel(about: str) -> tuple[str, str] | None:
    """The outermost relation of a phrase, and what that is of; None for a name."""
    for pattern, rel in _SPOKEN:
        if found := pattern.fullmatch(about):
            return rel, found[1]
    found = _NESTED.fullmatch(about)
    return (found[1], found[2]) if found else None
