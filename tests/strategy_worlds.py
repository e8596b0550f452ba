"""What the tests of strategies share: seven passages, values for every strategy, a strategy played
step by step with scripted results."""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from stages.digest import digest
from stages.effects import LLM, Choice, Effect, Encode, Hint, Outcome, Question, Search
from stages.serve.asked import Library
from stages.serve.strategies import (
    adaptive_note,
    flare,
    freeson,
    hyde,
    ircot,
    iter_retgen,
    iterative,
    kirag,
    rar2,
    rfm_rag,
    self_rag,
    subquestions,
)
from stages.tables import table
from stages.types import Generation, Hit, Passage, Query, Span

LOOPS = (
    adaptive_note,
    flare,
    freeson,
    hyde,
    ircot,
    iter_retgen,
    iterative,
    kirag,
    rar2,
    rfm_rag,
    self_rag,
    subquestions,
)
SLOTS = dict(corpus="c", index="i", encoder="none", triples="none", split="all", model="m")
SLOTS |= dict(facts="f", scorer="s")
NEEDED = {  # values for an index of words, small models, no triples
    "hyde": {"combine": "text"},
    "rar2": {"thought_tokens": 64},
    "rfm_rag": {"mode": "llm", "distil": "raw", "judge": "llm"},
}

TEXTS = {
    "aida": ("Aida", "Aida is an opera by Verdi."),
    "verdi": ("Verdi", "Verdi was born in Italy."),
    "rhine": ("Rhine", "The Rhine is a river."),
    "lyon": ("Lyon", "Lyon is a city."),
    "etna": ("Etna", "Etna is a volcano."),
    "etna-2": ("Etna", "Etna erupted again."),
    "fuji": ("Fuji", "Fuji is a volcano."),
}


def name_of(method: ModuleType) -> str:
    return method.__name__.rpartition(".")[2]


def params_of(method: ModuleType, **values: Any) -> Any:
    name = name_of(method)
    return method.Params(**{"strategy": name, **SLOTS, **NEEDED.get(name, {}), **values})


def library_of(
    texts: Mapping[str, tuple[str, str]], count_tokens: Callable[[list[str]], list[int]],
    **more: Any,
) -> Library:  # fmt: skip
    """A library with a passage <name>#0 per (title, text)."""
    rows = [
        dict(docid=f"{name}#0", parent=name, seq=0, title=title, text=text, start=0, end=len(text),
             text_hash=digest(title, text))
        for name, (title, text) in texts.items()
    ]  # fmt: skip
    return Library(table("passages", rows), count_tokens, **more)


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def passage(name: str) -> Passage:
    return Passage(f"{name}#0", *TEXTS[name])


class Played(NamedTuple):
    """Everything a strategy yielded, in order and without lists, and how it ended."""

    asked: list[Effect]
    outcome: Outcome

    @property
    def prompts(self) -> list[str]:
        """Of generations and choices."""
        return [
            e.request.prompt if isinstance(e, LLM) else e.prompt
            for e in self.asked
            if isinstance(e, LLM | Choice)
        ]

    @property
    def queries(self) -> list[Query]:
        return [e.query for e in self.asked if isinstance(e, Search) and e.unit == "passage"]

    @property
    def story(self) -> list[tuple[str, Any]]:
        """Hints and queries as texts, generations and choices by their names alone."""
        told: list[tuple[str, Any]] = []
        for e in self.asked:
            match e:
                case Hint(query=query):
                    told.append(("hint", query))
                case Search(query=query, unit="passage"):
                    told.append(("search", query))
                case LLM():
                    told.append(("llm", None))
                case Choice():
                    told.append(("choice", None))
        return told


def play(
    method: ModuleType, text: str, *, says: Sequence[str] = (), finds: Mapping[Query, str] = {},
    chooses: Sequence[int] = (), unsure: Callable[[str, float], Sequence[Span]] = lambda t, p: (),
    options: Sequence[str] = (), finish: str = "stop", texts: Mapping[str, tuple[str, str]] = TEXTS,
    vectors: Any = None, facts: Any = None, **values: Any,
) -> Played:  # fmt: skip
    """Run a strategy on one question.

    Generations are ``says`` in order, choices ``chooses``; a query finds the passages that
    ``finds`` names, best first with scores 9, 8 ..., and without an entry there nothing.
    """
    spoken, options_chosen, asked = iter(says), iter(chooses), []

    def result(effect: Effect) -> Any:
        asked.append(effect)
        match effect:
            case LLM(request=request):
                said = next(spoken)
                doubts = tuple(tuple(unsure(said, p)) for p in request.doubt_below)
                return Generation(said, 1, 1, finish, doubts)
            case Choice():
                return next(options_chosen)
            case Search(query=query, k=k, unit=unit):
                names = finds.get(query, "").split()[:k]
                tail = "#0" if unit == "passage" else ""
                return [Hit(f"{name}{tail}", 9.0 - i) for i, name in enumerate(names)]
            case Encode(texts=encoded, role=role):
                return vectors.encode(encoded, role)
        return None

    params = params_of(method, **values)
    library = library_of(texts, count_words, facts=facts)
    steps = method.strategy(Question("q", text, options), params, library)
    try:
        wanted = next(steps)
        while True:
            many = isinstance(wanted, list)
            wanted = steps.send([result(e) for e in wanted] if many else result(wanted))
    except StopIteration as stop:
        assert next(spoken, None) is None, "it asked for fewer generations"
        assert next(options_chosen, None) is None, "it asked for fewer choices"
        return Played(asked, stop.value)
