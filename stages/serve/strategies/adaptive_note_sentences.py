"""Notes that are made of sentences: which are relevant, what a note covers, what to ask next.

The writer and the reviewer of Adaptive-Note without a model that can judge (card, section 7): all
of it is arithmetic over the words of the sentences found so far, and ours.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stages.text import split_sentences, word_spans
from stages.types import Passage

# Words that tell nothing of a question's subject. Other languages go by idf alone.
_STOP_WORDS = (
    "a an the of in on at for to by with from into and or not is are was were be been being do "
    "does did has have had can will what which who whom whose when where why how that this these "
    "those it its their they them his her him he she as than then each per between all any some "
    "many much most more also there if so but s"
)
_STOP = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"\w+")
_JOINS = {"of", "the", "de", "da", "di", "del", "la", "le", "van", "von", "der", "for", "and"}


class Sentence(NamedTuple):
    """A sentence of a passage; a note that a model wrote is one without docid and title."""

    docid: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """The sentence with its title, where it does not name it itself."""
        named = set(content_words(self.title)) <= set(content_words(self.text))
        return self.text if named else f"{self.title}: {self.text}"


Note = tuple[Sentence, ...]


def note_text(note: Note) -> str:
    """The note on one line."""
    return " ".join(" ".join(s.whole.split()) for s in note)


def note_of(text: str) -> Note:
    """A text as a note; of blanks an empty one."""
    line = " ".join(text.split())
    return (Sentence("", "", line),) if line else ()


def sentences_of(passages: Iterable[Passage]) -> list[Sentence]:
    """All sentences, in order."""
    return [
        Sentence(p.docid, p.title, p.text[start:end])
        for p in passages
        for start, end in split_sentences(p.text)
    ]


def content_words(text: str) -> list[str]:
    """Words without case, stop words left out; a character each in scripts without blanks."""
    folded = text.casefold()
    spaced = " ".join(folded[start:end] for start, end in word_spans(folded))
    return [w for w in _WORD.findall(spaced) if w not in _STOP]


def weigh_words(sentences: Sequence[Sentence]) -> dict[str, float]:
    """idf(w) = ln(1 + (N - df + 0.5) / (df + 0.5)) over these sentences, as in BM25."""
    df = Counter(w for s in sentences for w in set(content_words(s.whole)))
    n = len(sentences)
    return {w: math.log(1 + (n - count + 0.5) / (count + 0.5)) for w, count in df.items()}


def overlap(query: str, text: str, idf: Mapping[str, float]) -> float:
    """The weight of the query's words that the text has, as a share of that of all of them."""
    wanted, there = dict.fromkeys(content_words(query)), set(content_words(text))
    total = math.fsum(idf.get(w, 0.0) for w in wanted)
    return math.fsum(idf.get(w, 0.0) for w in wanted if w in there) / total if total else 0.0


def coverage(note: Note, question: str, asked: Sequence[str], idf: Mapping[str, float]) -> float:
    """How much of what is wanted a note has, from 0 to 1, weighed by idf.

    Wanted is every content word of the question once, and every other word of the proposals so far
    in two sentences: once where it was met, and once more where something is said about it.
    """
    goals = dict.fromkeys(content_words(question), 1)
    for word in content_words(" ".join(asked)):
        goals.setdefault(word, 2)
    parts = (s.whole[a:b] for s in note for a, b in split_sentences(s.whole))
    named = Counter(w for part in parts for w in set(content_words(part)))
    total = math.fsum(idf.get(w, 0.0) for w in goals)
    has = (idf.get(w, 0.0) * min(named[w], goal) / goal for w, goal in goals.items())
    return math.fsum(has) / total if total else 0.0


def next_entities(note: Note, question: str, asked: Sequence[str], n: int = 2) -> list[str]:
    """Up to n names to ask for: of the newest sentence that has one, names first, then its title.

    A name is a run of capitalised words. One whose words are all in the question, or in an
    earlier proposal, is known.
    """
    known = [set(content_words(text)) for text in (question, *asked)]

    def is_new(name: str) -> bool:
        words = set(content_words(name))
        return bool(words) and not any(words <= k for k in known)

    for sentence in reversed(note):
        names = [*capitalised(sentence.text), sentence.title]
        if new := list(dict.fromkeys(name for name in names if is_new(name))):
            return new[:n]
    return []


def capitalised(text: str) -> list[str]:
    """Runs of capitalised words, with what joins them ("University of Oxford")."""
    runs: list[list[re.Match[str]]] = [[]]
    for m in _WORD.finditer(text):
        joins = m[0] in _JOINS
        between = text[runs[-1][-1].end() : m.start()] if runs[-1] else " "
        if between.strip(" -'’"):  # punctuation ends a name
            runs.append([])
        if m[0][0].isupper() or (joins and runs[-1]):
            runs[-1].append(m)
        elif runs[-1]:
            runs.append([])
    found = []
    for run in runs:
        while run and run[-1][0] in _JOINS:
            run.pop()
        while run and run[0][0].casefold() in _STOP:
            run.pop(0)
        if run:
            found.append(text[run[0].start() : run[-1].end()])
    return found
