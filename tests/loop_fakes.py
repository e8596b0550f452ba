"""Plumbing for tests of the loop engine: tools that answer from a digest and count their work."""

import re
from collections.abc import Callable, Iterator, Sequence

from stages.digest import digest, uniform
from stages.effects import LLM, Outcome, Question, Search, Steps
from stages.loop import Loop
from stages.tables import TABLES
from stages.types import Generation, Hit, Inbox, Query, Request, Span, TokenEvent


class FakeLLM:
    """Texts from a script, else from the digest of prompt and seed, cut at the limit; counted."""

    fingerprint = "fake-llm"
    context = 1000

    def __init__(self, script: Callable[[str], str | None] = lambda prompt: None) -> None:
        self.script = script
        self.batches: list[list[Request]] = []
        self.choices: list[str] = []

    @property
    def n_calls(self) -> int:
        return sum(map(len, self.batches))

    def stream(self, inbox: Inbox) -> Iterator[TokenEvent]:
        self.batches.append([])
        while not inbox.closed():
            for name, request in inbox.admit(3):
                self.batches[-1].append(request)
                yield TokenEvent(name, "", None)
                yield TokenEvent(name, "", self._text(request))

    def _text(self, r: Request) -> Generation:
        text = self.script(r.prompt)
        if text is None:
            text = "w" + digest(r.prompt, str(r.seed))[:6]
        words = list(re.finditer(r"\S+", text))
        n = min(len(words), r.max_tokens)
        if n < len(words):
            text = text[: words[n - 1].end()] if n else ""
        doubts = tuple(_doubts(text, threshold) for threshold in r.doubt_below)
        finish = "stop" if n == len(words) else "length"
        return Generation(text, len(r.prompt.split()), n, finish, doubts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(t.split()) for t in texts]

    def choose(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        self.choices += prompts
        return [[-uniform(p, o) for o in opts] for p, opts in zip(prompts, options, strict=True)]


def _doubts(text: str, threshold: float) -> tuple[Span, ...]:
    """Words drawn by the digest of the text: all of them at a threshold of 1, none at 0."""
    words = [m.span() for m in re.finditer(r"\S+", text)]
    return tuple(w for i, w in enumerate(words) if uniform(text, str(i)) < threshold)


class FakeSearch:
    """k passages of a corpus of ``n``, picked by the digest of the query; calls are counted."""

    fingerprint = "fake-search"

    def __init__(self, n: int = 10_000) -> None:
        self.n = n
        self.batches: list[list[str]] = []

    @property
    def n_calls(self) -> int:
        return sum(map(len, self.batches))

    def search(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        self.batches.append(list(queries))
        first = [int(uniform(*([q] if isinstance(q, str) else q)) * self.n) for q in queries]
        ranks = range(min(k, self.n))
        return [[Hit(f"d{(at + i) % self.n}#0", 1.0 / (1 + i)) for i in ranks] for at in first]


def ask(prompt: str, max_tokens: int = 8, temperature: float = 0.0) -> LLM:
    return LLM(Request(prompt, max_tokens, temperature=temperature))


def note_taking(question: Question) -> Steps:
    """The shape of Adaptive-Note; the question's text says how many steps it takes.

    2 + 3 steps calls of the model (first note; query, note, verdict; answer), 1 + steps searches.
    """
    steps, docs = int(question.text), []
    docs += [h.docid for h in (yield Search(f"{question.qid}", 2))]
    note = (yield ask(f"note {question.qid} {docs}")).text
    for t in range(steps):
        query = (yield ask(f"query {t} {question.qid} {note}")).text
        docs += [h.docid for h in (yield Search(query, 2))]
        better = (yield ask(f"refine {t} {question.qid} {note} {docs[-2:]}")).text
        verdict = (yield ask(f"compare {t} {question.qid} {note} {better}")).text
        note = max(note, better) if verdict else note
    answer = (yield ask(f"answer {question.qid} {note}")).text
    return Outcome(answer, memory=note, docids=docs)


def table_bytes(loop: Loop) -> bytes:
    """Everything a run of the engine says about its questions, as bytes."""
    assert loop.effects.schema == TABLES["effects"].schema
    return repr((loop.answered, loop.effects.to_pylist())).encode()
