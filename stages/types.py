"""The contract of the parts that can be swapped: small records and batch-first protocols."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.errors import Refused

Role = Literal["query", "passage"]
Query = str | tuple[str, ...]  # several texts: the mean of their vectors
Span = tuple[int, int]  # characters of a text, from and to
Finish = Literal["stop", "eos", "length", "cancelled"]


class Hit(NamedTuple):
    """One retrieved passage (or, after collapsing, document)."""

    docid: str
    score: float


class Hits(Sequence[Hit]):
    """A ranking, best first, kept as two arrays: an item is a ``Hit``, a slice is a ranking.

    Making a hundred hits takes as long as finding them; most rankings are only written.
    """

    __slots__ = ("docids", "scores")

    def __init__(self, docids: npt.NDArray[np.object_], scores: npt.NDArray[np.floating]) -> None:
        self.docids = docids
        self.scores = scores

    def __len__(self) -> int:
        return len(self.docids)

    def __getitem__(self, at: Any) -> Any:
        docids, scores = self.docids[at], self.scores[at]
        return Hits(docids, scores) if isinstance(at, slice) else Hit(docids, float(scores))

    def __iter__(self) -> Iterator[Hit]:
        return map(Hit, self.docids.tolist(), self.scores.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Hits({list(self)})"


class Passage(NamedTuple):
    """What a reader needs of a passage."""

    docid: str
    title: str
    text: str


class Request(NamedTuple):
    """One text to generate. ``temperature`` 0 is greedy; a sample depends on ``seed`` alone."""

    prompt: str
    max_tokens: int
    stop: tuple[str, ...] = ()  # generation ends before the first of these; they are not returned
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    doubt_below: tuple[float, ...] = ()  # probabilities; ``Generation.doubts`` has spans for each


class Generation(NamedTuple):
    """A generated text, without its stop string, and what it cost.

    ``doubts[i]`` are the spans of ``text`` whose tokens had a probability (of the model, at
    temperature 1) below ``Request.doubt_below[i]``: in order, no two of them touching.
    """

    text: str
    tokens_in: int
    tokens_out: int
    finish: Finish
    doubts: tuple[tuple[Span, ...], ...] = ()


class TokenEvent(NamedTuple):
    """A step of one streamed request: new text, and at its end the whole generation.

    A server may refuse one request and answer the others: then that is its end.
    """

    request_id: str
    text: str
    done: Generation | Refused | None


class LogProb(NamedTuple):
    """Log-probability of a completion given its prompt, summed over ``n_tokens`` tokens."""

    total: float
    n_tokens: int


class Retriever(Protocol):
    """Finds passages for many queries at once."""

    fingerprint: str  # of the index and of the encoder that made it

    def search(self, queries: Sequence[Query], k: int) -> Sequence[Sequence[Hit]]:
        """Up to k hits per query, best first; equal scores by docid descending.

        Raises:
            QuarryError: a query is several texts, and the index has no vectors.
        """
        ...


class Encoder(Protocol):
    """Texts to unit vectors of ``dim`` float32 components."""

    fingerprint: str
    dim: int

    def encode(self, texts: Sequence[str], role: Role) -> npt.NDArray[np.float32]:
        """An (n, d) array; row i depends on texts[i] alone."""
        ...


class Reranker(Protocol):
    """Scores (query, passage) pairs; larger is more relevant."""

    fingerprint: str

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """An (n,) array."""
        ...


class Generator(Protocol):
    """A language model. The batch calls are clients of ``stream``."""

    fingerprint: str
    context: int | None  # tokens that a prompt and its completion may have; None: unknown

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One generation per request, in order; greedy texts do not depend on the batch."""
        ...

    def logprobs(self, prompts: Sequence[str], completions: Sequence[str]) -> list[LogProb]:
        """log p(completions[i] | prompts[i]); the two are tokenised separately."""
        ...

    def choose(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-probability of each option, per prompt."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        ...

    def stream(self, inbox: "Inbox") -> Iterator[TokenEvent]:
        """Events of all running requests, token step by token step.

        ``inbox`` is asked between steps: for requests to admit and for ids to cancel. The
        stream ends when the inbox is closed and every admitted request is done.
        """
        ...


class Inbox(Protocol):
    """Where a running stream finds new work."""

    def admit(self, room: int) -> Iterable[tuple[str, Request]]:
        """Up to ``room`` new (request_id, request); may be empty."""
        ...

    def cancelled(self) -> Iterable[str]:
        """Ids whose requests must stop now."""
        ...

    def closed(self) -> bool:
        """Whether no request will ever come again."""
        ...
