"""What the tests of walks share: a small index of numbers, and a model that is a table."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
from pydivsufsort import divsufsort

from stages.digest import uniform
from stages.index import suffixes
from stages.index.suffixes import Suffixes
from stages.prefixes import Ask, Read
from stages.serve.traverse.search import Prefix, Search
from stages.serve.traverse.walk import Walk

Docs = Sequence[Sequence[int]]


def index_of(docs: Docs, separator: int = 30) -> Suffixes:
    """Every token may begin a walk; a passage's name is its number."""
    arrays = suffixes.lay_out(docs, separator)
    arrays["sa"] = divsufsort(arrays["tokens"])
    offered = np.ones(separator + 1, bool)
    offered[separator] = False
    names = [f"{i}#0" for i in range(len(docs))]
    return Suffixes(**arrays, offered=offered, starts=offered, docids=names, tokenizer="t")


class TableModel:
    """A ``PrefixReader``: log-probabilities are a function of (prompt, tokens); calls are counted.

    A column is its token, so that a path is the prefix.
    """

    tokenizer = "t"

    def __init__(self, logps: Callable[[str, tuple[int, ...]], np.ndarray]) -> None:
        self.logps = logps
        self.passes: list[int] = []
        self.tokens = 0  # read, prompts too

    def open(self, prompts: Sequence[str], *, room: int) -> list[SimpleNamespace]:
        self.tokens += sum(len(p.split()) for p in prompts)
        return [SimpleNamespace(text=p, n=len(p.split()), logps=self.logps(p, ())) for p in prompts]

    def read(self, asks: Sequence[Ask], *, keep: bool = True) -> list[Read]:
        self.passes.append(len(asks))
        self.tokens += sum(len(ask.tokens) for ask in asks)
        found = []
        for prompt, path, tokens in asks:
            own = [self.logps(prompt.text, (*path, *tokens[:i]))[t]
                   for i, t in enumerate(tokens) if i]  # fmt: skip
            after = (*path, *tokens)
            found.append(Read(
                after if keep else (), self.logps(prompt.text, after), np.array(own, np.float32),
                np.zeros((len(tokens), 1), np.float32),
            ))  # fmt: skip
        return found


def drawn(prompt: str, tokens: tuple[int, ...], n: int = 30) -> np.ndarray:
    """Some distribution over n tokens, by digest."""
    seed = int(uniform(prompt, *map(str, tokens)) * 2**40)
    x = np.random.default_rng(seed).normal(size=n) * 2
    return (x - np.log(np.exp(x).sum())).astype(np.float32)


class Scored:
    """A ``Value`` that is a function of (query, tokens)."""

    fingerprint = "scored"

    def __init__(self, score: Callable[[str, tuple[int, ...]], float]) -> None:
        self.score = score

    def __call__(self, prefixes: Sequence[Prefix]) -> np.ndarray:
        return np.array([self.score(p.query, p.tokens) for p in prefixes])


def searching(
    docs: Docs, value: Callable[[str, tuple[int, ...]], float], *, seed: int = 13,
    logps: Callable[[str, tuple[int, ...]], np.ndarray] = drawn, **values: object,
) -> Search:  # fmt: skip
    """A search over these passages; without ``verify_tokens`` every value is a prefix's own."""
    walk = Walk(**{"verify_tokens": 0, **values})
    return Search(index_of(docs), TableModel(logps), Scored(value), walk, seed=seed)


def random_docs(n: int, seed: int, *, tokens: int = 6, least: int = 5, most: int = 40) -> Docs:
    random = np.random.default_rng(seed)
    lengths = random.integers(least, most, n)
    return [random.integers(0, tokens, m).tolist() for m in lengths]
