"""A statement from a question and its answer, by rule: the text of a fact passage.

"What is the batting hand of Pat Burrell?" with "Right" becomes "The batting hand of Pat Burrell
is Right." The rules know the forms that English fact questions take: a question word, perhaps a
noun, an auxiliary, a subject, the rest. Where the subject ends is seen from the verb that follows
it, and verbs are listed. A question of no known form gives "<the question>: <answer>."

``options`` tells from a question's form whether yes or no answers it.
"""

import re
from collections.abc import Callable

# Base form -> past tense; the third person adds s.
_PAST = {
    "achieve": "achieved", "appear": "appeared", "attend": "attended", "become": "became",
    "begin": "began", "belong": "belonged", "compete": "competed", "complete": "completed",
    "cost": "cost", "die": "died", "direct": "directed", "earn": "earned", "end": "ended",
    "found": "founded", "get": "got", "go": "went", "graduate": "graduated", "gross": "grossed",
    "has": "had", "have": "had", "happen": "happened", "join": "joined", "lead": "led",
    "live": "lived", "make": "made", "occur": "occurred", "open": "opened",
    "originate": "originated", "play": "played", "publish": "published", "receive": "received",
    "release": "released", "represent": "represented", "score": "scored", "serve": "served",
    "sign": "signed", "start": "started", "study": "studied", "take": "took", "teach": "taught",
    "use": "used", "weigh": "weighed", "win": "won", "work": "worked", "write": "wrote",
}  # fmt: skip
_THIRD = {
    "have": "has", "has": "has", "go": "goes", "teach": "teaches", "study": "studies",
    "gross": "grosses",
}  # fmt: skip
# What follows the subject after a form of be, have or can.
_AFTER_BE = (
    "acquired|associated|based|born|built|completed|composed|created|discovered|enrolled|"
    "established|famous|first|founded|from|headquartered|held|hosted|introduced|invented|known|"
    "launched|located|made|named|nominated|open(?:ed)?|originated|played|published|received|"
    "released|represented|scored|served|set|signed|still|taught|used|won|written|been|ever|had|"
    "travel|in$"
)
# Verbs that follow the noun of "which company owns ...".
_THIRD_OR_PAST = (
    "owns|makes|won|made|joined|hosts|hosted|produces|wrote|directed|composed|code|encodes?|"
    "flows|founded|played"
)
_BASE = "|".join(_PAST)
_BE = "is|are|was|were"
_AUX = f"(?P<aux>{_BE}|do|does|did|has|have|had|can)"
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAY = re.compile(rf"(?:{_MONTH})\w* \d{{1,2}}\b(?!\d)|\b\d{{1,2}}(?:st|nd|rd|th)? (?:{_MONTH})")
_SCHOOL = re.compile(r"Universit|College|School|Institute|Academy|\bMIT\b")

Answer = str | int | float | bool | list | dict
Match = re.Match[str]


def state(question: str, answer: Answer) -> str:
    """One declarative sentence, with a capital and a full stop; a list is joined with "and"."""
    stem = " ".join(question.split()).rstrip("?. ")
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    said = phrase(answer) or "not known"
    be = "are" if isinstance(answer, list) else "is"
    found = (rule(m, said, be) for pattern, rule in _RULES if (m := pattern.fullmatch(stem)))
    sentence = next(filter(None, found), f"{stem}: {said}")
    return _capital(sentence) + ("" if sentence.endswith((".", "!")) else ".")


YES_NO = ("yes", "no")
_ASKS_WHETHER = re.compile(
    rf"(?:{_BE}|do|does|did|has|have|had|can|could|will|would|should) (?!you\b)(?P<rest>.+)", re.I
)
# "..., and if so, who discovered it" and "..., who" ask for more than yes or no.
_ASKS_MORE = re.compile(r"\bif so\b|(?:,|\band|\bor) (?:who|what|which|when|where|why|how)\b", re.I)
# "Is Ann or Bo older" asks which; "has Yale ever had a queen or king" and "one of A or B" do not.
_ASKS_WHICH = re.compile(r"(?:(?!\b(?:ever|any|one of)\b).)*\bor\b.*", re.I)


def options(question: str) -> tuple[str, ...]:
    """Yes and no for a question that asks whether something is so; else none.

    Its form decides, never its answer. In doubt there are none: an answer in free words can still
    be yes, while a choice between two cannot be anything else.
    """
    m = _ASKS_WHETHER.fullmatch(" ".join(question.split()).rstrip("?. "))
    more = m and (_ASKS_MORE.search(m["rest"]) or _ASKS_WHICH.fullmatch(m["rest"]))
    return YES_NO if m and not more else ()


def phrase(answer: Answer) -> str:
    """An answer as it stands in a sentence."""
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, dict):
        if len(answer) == 1:
            return phrase(next(iter(answer.values())))
        return "; ".join(f"{k}: {phrase(v)}" for k, v in answer.items())
    if isinstance(answer, list):
        items = [phrase(a) for a in answer]
        return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)
    return str(answer).strip().lstrip(". ")


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


# -- forms: each takes the match, the answer as a phrase and its form of be; None: not this form --


def _in(answer: str) -> str:
    """A place or a time after its preposition."""
    if re.match(r"(?:in|on|at|from|near|since|between|around|during) ", answer, re.I):
        return answer
    if _DAY.search(answer):
        return f"on {answer}"
    return f"at {answer}" if _SCHOOL.search(answer) else f"in {answer}"


def _clause(aux: str, rest: str, no: str = "") -> str | None:
    """Subject and verb in their order, without the auxiliary of a question.

    "did", "the Eagles win their first championship" -> "the Eagles won their first championship".
    """
    aux = aux.lower()
    if aux not in ("do", "does", "did"):
        m = re.fullmatch(rf"(.+?) ((?:{_AFTER_BE})\b.*)", rest)
        return m and f"{m[1]} {aux}{no} {m[2]}"
    m = re.fullmatch(rf"(.+?) (first )?({_BASE})\b(.*)", rest)
    if not m:
        return None
    subject, adverb, verb, end = m.groups("")
    if no:
        return f"{subject} {aux}{no} {adverb}{verb}{end}"
    form = {"did": _PAST[verb], "do": verb, "does": _THIRD.get(verb, verb + "s")}[aux]
    return f"{subject} {adverb}{form}{end}"


def _yes_no(m: Match, answer: str, be: str) -> str | None:
    """Does Oregon have a flag: yes; has Yale had a president: "Yes, Hanna Gray"."""
    said = re.fullmatch(r"(yes|no)\b[,: ]*(.*)", answer, re.I)
    if not said:
        return None
    yes = said[1].lower() == "yes"
    clause = _clause(m["aux"], m["rest"].replace(" ever ", " ") if yes else m["rest"],
                     "" if yes else " not")  # fmt: skip
    return f"{clause}: {answer}" if clause and said[2] else clause


def _when_where(m: Match, answer: str, be: str) -> str | None:
    """When was X founded; where did X study; where is the seat of X."""
    word, aux, rest = m["word"].lower(), m["aux"], m["rest"]
    if rest.endswith(" from"):
        return f"{rest.removesuffix(' from')} {aux} from {answer}"
    if clause := _clause(aux, rest):
        return None if re.match("born", answer, re.I) else f"{clause} {_in(answer)}"
    return f"{rest} {aux} {_in(answer) if word == 'where' else answer}"


def _which(m: Match, answer: str, be: str) -> str | None:
    """Which N did X attend; in which N was X born; what N is X; which N has won Y."""
    prep, noun, aux, rest = (m["prep"] or "").lower(), m["noun"], m["aux"], m["rest"]
    own = "the|" if aux in ("are", "were") else ""  # which banks are the largest
    if not prep and re.match(rf"(?:{own}{_AFTER_BE}|the most|a part|on|an?)\b", rest):
        return f"the {noun} that {aux} {rest} {be} {answer}"
    if clause := _clause(aux, rest):
        return f"the {noun} {prep + 'which ' if prep else ''}{clause} {be} {answer}"
    if aux in ("has", "have", "had"):
        return f"the {noun} that {aux} {rest} {be} {answer}"
    return f"the {noun} of {rest} {be} {answer}" if aux in _BE.split("|") else None


def _how_many(m: Match, answer: str, be: str) -> str | None:
    """How many N does X have; how many N are in X."""
    number = f"the {'approximate ' if m['about'] else ''}number of {m['noun']}"
    if place := re.fullmatch(r"there|(?:there )?((?:in|on|at|enrolled) .+)", m["rest"]):
        return f"{number} {place[1] + ' ' if place[1] else ''}is {answer}"
    clause = _clause(m["aux"], m["rest"])
    return clause and f"{number} {clause} is {answer}"


def _how_much(m: Match, answer: str, be: str) -> str | None:
    clause = _clause(m["aux"], m["rest"])
    return clause and f"the {(m['noun'] or 'amount').strip()} {clause} {be} {answer}"


def _how_old(m: Match, answer: str, be: str) -> str:
    who, aux = m["rest"], m["aux"]
    return f"{who} {aux} {answer} years old" if answer.isdigit() else f"{who}'s age {aux} {answer}"


def _for_what(m: Match, answer: str, be: str) -> str | None:
    clause = _clause(m["aux"], m["rest"])
    return clause and f"{clause} for {answer}"


def _in_year(m: Match, answer: str, be: str) -> str:
    sentence = state(m["rest"], answer)
    return f"{m['year']}, {sentence[:1].lower()}{sentence[1:]}"


Rule = Callable[[Match, str, str], str | None]
_NOUN = rf"(?P<noun>(?:(?!(?:{_BE}|do|does|did|has|have|had|can)\b)\S+ )+?)"
_FORMS: list[tuple[str, Rule]] = [
    (r"(?P<year>in \d{4}), (?P<rest>what .+)", _in_year),
    (rf"{_AUX} (?P<rest>.+)", _yes_no),
    (rf"how old {_AUX} (?P<rest>.+)", _how_old),
    (rf"(?P<about>approximately )?how m?any (?P<noun>.+?) {_AUX} (?P<rest>.+)", _how_many),
    (rf"how much (?P<noun>.+ )??{_AUX} (?P<rest>.+)", _how_much),
    (rf"(?P<word>when|where) {_AUX} (?P<rest>.+)", _when_where),
    (rf"for what {_AUX} (?P<rest>.+)", _for_what),
    (rf"(?:what|who|which|how(?: long| large| tall| high)?)(?:'s| (?P<is>{_BE})) (?P<rest>.+)",
     lambda m, a, be: f"{m['rest']} {m['is'] or 'is'} {a}"),
    (r"who (?:all )?((?:has|have|\w+ed|won|wrote|made|led|owns|runs|sang|plays) .+)",
     lambda m, a, be: f"{a} {m[1]}"),
    (rf"(?:what|which) {_NOUN}((?:{_THIRD_OR_PAST}) .+)",
     lambda m, a, be: f"the {m['noun']}that {m[2]} {be} {a}"),
    (rf"(?P<prep>(?:in|at|from|on|for|to|of) )?(?:what|which) (?P<noun>.+?) {_AUX} (?P<rest>.+)",
     _which),
    (r"(?:name|list|find|identify)(?: a list of| of)? (.+)", lambda m, a, be: f"{m[1]} {be} {a}"),
    (r"(?:population|president|chancellor)\b.+", lambda m, a, be: f"{m[0]} {be} {a}"),
]  # fmt: skip
_RULES = [(re.compile(pattern, re.I), rule) for pattern, rule in _FORMS]
