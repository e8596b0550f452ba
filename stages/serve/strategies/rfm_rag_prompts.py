"""RFM-RAG's prompts (two demonstrations, plain text), and what is believed of the replies.

Of the paper's prompts nothing could be read: they are ours. What a model writes is input from a
stranger: a triple needs three fields and no bare variable for a relation, a query may hold no
variable, a sentence must stand in its passage.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stages.chains import parse_triples, triple_text
from stages.evidence import is_grounded
from stages.gaps import MOST_TRIPLES, Fact, is_variable
from stages.types import Passage

NONE = "none"  # a reply that says that nothing is of use
_VARIABLE = re.compile(r"\?\w+")
_RHINE = [Fact("Rhine", "length", "?a"), Fact("Seine", "length", "?b")]
_AIDA = [Fact("Aida", "composer", "?a"), Fact("?a", "country of birth", "?b")]
_QUESTIONS = (
    "Which is longer, the Rhine or the Seine?",
    "In which country was the composer of Aida born?",
)
_VERDI = Fact("Aida", "composer", "Giuseppe Verdi")


def triples_prompt(question: str) -> str:
    """The prompt for a question's triples; what follows is " <head; relation; ?a> ...\\n"."""
    shots = [(q, written(f)) for q, f in zip(_QUESTIONS, (_RHINE, _AIDA), strict=True)]
    return _fill("Question: {}\nTriples: {}", shots, line(question))


def gap_prompt(question: str, known: Sequence[Fact], gap: Fact) -> str:
    """The prompt for the query that would close a gap; what follows is " words\\n"."""
    shots = [
        (_QUESTIONS[0], NONE, written(_RHINE[:1]), "length of the Rhine"),
        (_QUESTIONS[1], written([_VERDI]), "<Giuseppe Verdi; country of birth; ?b>",
         "Giuseppe Verdi birthplace"),
    ]  # fmt: skip
    form = "Question: {}\nKnown: {}\nMissing: {}\nSearch: {}"
    return _fill(form, shots, line(question), written(known) or NONE, written([gap]))


def rewrite_prompt(question: str, evidence: Sequence[str]) -> str:
    """The prompt for a next query from question and evidence alone, without triples."""
    shots = [
        (_QUESTIONS[0], "The Rhine is 1,230 km long.", "length of the Seine"),
        (_QUESTIONS[1], "Aida is an opera by Giuseppe Verdi.", "Giuseppe Verdi birthplace"),
    ]
    form = "Question: {}\nEvidence: {}\nSearch: {}"
    return _fill(form, shots, line(question), line(" ".join(evidence)) or NONE)


def distil_prompt(question: str, gaps: Sequence[Fact], passage: Passage) -> str:
    """The prompt for a passage's useful sentences; what follows is " sentence <h; r; t>\\n..."."""
    shots = [
        (_QUESTIONS[0], written(_RHINE), "Seine. The Seine is 775 km long. It crosses Paris.",
         "The Seine is 775 km long. <Seine; length; 775 km>"),
        (_QUESTIONS[1], written(_AIDA), "Etna. Etna is a volcano in Sicily.", NONE),
    ]  # fmt: skip
    form = "Question: {}\nMissing: {}\nPassage: {}\nEvidence: {}"
    shown = f"{line(passage.title)}. {line(passage.text)}"
    return _fill(form, shots, line(question), written(gaps) or NONE, shown)


def sufficient_prompt(question: str, evidence: Sequence[str]) -> str:
    """The prompt for the choice whether the evidence is complete; ``NO_YES`` follows."""
    shots = [
        (_QUESTIONS[0], "The Rhine is 1,230 km long.", "no"),
        (_QUESTIONS[1], "Aida is an opera by Giuseppe Verdi. Giuseppe Verdi was born in Italy.",
         "yes"),
    ]  # fmt: skip
    form = "Question: {}\nEvidence: {}\nSufficient: {}"
    return _fill(form, shots, line(question), line(" ".join(evidence)) or NONE)


def line(text: str) -> str:
    """``text`` on one line: a line break would end a reply early."""
    return " ".join(text.split())


def written(facts: Iterable[Fact]) -> str:
    """Triples as they stand in a prompt."""
    return " ".join(line(triple_text(*f)) for f in facts)


def _fill(form: str, shots: Sequence[Sequence[str]], *given: str) -> str:
    """The filled forms, then the form with what is given, up to its last blank."""
    asked = form[: form.rindex(" {}")].format(*given)
    return "\n\n".join([*(form.format(*shot) for shot in shots), asked])


# -- replies ----------------------------------------------------------------------------------


class Distilled(NamedTuple):
    """What a reply gave: grounded sentences with their grounded triples; whether it was sound."""

    kept: list[tuple[str, tuple[Fact, ...]]]
    parsed: bool  # it kept a line, or said "none"


def read_question_triples(reply: str) -> list[Fact]:
    """A question's triples, four at the most."""
    facts = [Fact(*t.fields) for t in parse_triples(reply) if t.is_sound]
    slots = [(f, [s for s in (f.subj, f.obj) if is_variable(s)]) for f in facts]
    kept = [
        f for f, variables in slots
        if not is_variable(f.rel) and all(_VARIABLE.fullmatch(v) for v in variables)
    ]  # fmt: skip
    return list(dict.fromkeys(kept))[:MOST_TRIPLES]


def whole_question(question: str) -> list[Fact]:
    """The question as its own single gap."""
    return [Fact(line(question), "answer", "?a")]


def read_query(reply: str) -> str:
    """A reply's first line as a query; empty where it holds a variable or a bracket."""
    query = line(reply.strip().partition("\n")[0])
    bad = _VARIABLE.search(query) or "<" in query or query.casefold() == NONE
    return "" if bad else query


def read_distilled(reply: str, passage: Passage, *, most: int) -> Distilled:
    """The lines of a reply that its passage supports, ``most`` of them at the most.

    A sentence needs 0.8 of its words in the passage; a triple both its names in title and text.
    """
    if line(reply).casefold().rstrip(".") == NONE:
        return Distilled([], True)
    whole = f"{passage.title}\n{passage.text}"
    kept: dict[str, tuple[Fact, ...]] = {}
    for said in reply.strip().splitlines():
        sentence = line(said.partition("<")[0])
        if is_grounded(sentence, passage.text):
            facts = [Fact(*t.fields) for t in parse_triples(said) if t.is_sound]
            kept.setdefault(sentence, tuple(
                f for f in facts
                if is_grounded(f.subj, whole, least=1) and is_grounded(f.obj, whole, least=1)
            ))  # fmt: skip
    return Distilled(list(kept.items())[:most], bool(kept))
