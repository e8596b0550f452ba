"""Many continuations of a prompt, read as a tree: what may follow each, and its last hidden state.

A tree search over texts asks for the next tokens of hundreds of prefixes of one prompt. Keys and
values of the prompt and of every token of the tree lie once, in columns in the order in which they
were read; a prefix is the list of its columns, and attention sees these alone (tree attention:
Miao et al., SpecInfer, ASPLOS 2024). Nothing is copied where the tree forks, and one pass reads
tokens of many prefixes of many prompts.

Prompts that begin alike copy that part's keys and values, also from the prompts opened before.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.errors import Refused
from stages.packed import Chunk, Fill, Pack, PackedModel, Rows

TOKENS = 512  # of a pass; logits of 512 tokens of SmolLM2 take 100 MB
SHARED = 32  # tokens in common that are worth copying
GRAIN = 256  # columns by which a tree grows
Columns = tuple[int, ...]


class Prompt:
    """A prompt that was read, and the tree behind it.

    ``logps`` (v,) are what may follow the prompt itself. Column i holds a token of the prompt where
    i < ``n``, and else one of the tree.
    """

    def __init__(self, ids: list[int]) -> None:
        self.fill = Fill(ids, len(ids) - 1)
        self.n = self.used = len(ids)
        self.logps: npt.NDArray[np.float32] | None = None


class Ask(NamedTuple):
    """Read these tokens behind the prefix whose columns are ``path`` (none: behind the prompt)."""

    prompt: Prompt
    path: Columns
    tokens: Sequence[int]


class Read(NamedTuple):
    """What came of an ``Ask`` of t tokens."""

    path: Columns  # of the longer prefix
    logps: npt.NDArray[np.float32]  # (v,) log-probabilities of what may follow it
    own: npt.NDArray[np.float32]  # (t - 1,) of tokens[1:], each after those before it
    hidden: npt.NDArray[np.float32]  # (t, d) what the head of the model reads of each token


class PrefixReader:
    """Reads trees with a local generator's model. For one thread at a time."""

    def __init__(
        self, model: PackedModel, encode: Callable[[Sequence[str]], list[list[int]]],
        decode: Callable[[Sequence[int]], str], window: int, tokenizer: str,
    ) -> None:  # fmt: skip
        self._model, self._encode, self._window = model, encode, window
        self.decode = decode  # tokens to their text
        self.tokenizer = tokenizer  # its fingerprint
        self._before: Fill | None = None  # the last prompt read: others may begin like it

    @property
    def tokens(self) -> int:
        """That went through the model so far."""
        return self._model.tokens

    def open(self, prompts: Sequence[str], *, room: int) -> list[Prompt]:
        """The prompts, read; a tree behind each may be ``room`` tokens deep.

        Raises:
            Refused: one with its tree does not fit the model's context.
        """
        opened = [Prompt(ids) for ids in self._encode(prompts)]
        for prompt in opened:
            if prompt.n + room > self._window:
                raise Refused(
                    f"a prompt has {prompt.n} tokens and {room} may follow; the model's context "
                    f"has {self._window}. Ask a shorter question, or walk less deep."
                )
        todo = list(opened)
        if todo:  # the first alone: the others copy what they share with it
            self._fill(todo[:1])
            self._fill(todo[1:])
        return opened

    def read(self, asks: Sequence[Ask], *, keep: bool = True) -> list[Read]:
        """One result for each, in order; all tokens in as few passes as ``TOKENS`` allows.

        With ``keep=False`` the tree does not grow, and the paths are good for nothing.
        """
        used = {id(ask.prompt): (ask.prompt, ask.prompt.used) for ask in asks}
        found = [read for part in _cut(asks) for read in self._pass(part)]
        if not keep:
            for prompt, before in used.values():
                prompt.used = before
        return found

    def _fill(self, prompts: Sequence[Prompt]) -> None:
        """Read prompts, a chunk of each at a time."""
        for prompt in prompts:
            if self._before is not None:
                common = min(_common(prompt.fill.ids, self._before.ids), prompt.n - 1)
                if common >= SHARED:
                    prompt.fill.donor, prompt.fill.shared = self._before, common
            self._model.start(prompt.fill)
        todo = list(prompts)
        while todo:
            chunks, room = [], TOKENS
            for prompt in todo:
                fill = prompt.fill
                stop = min(fill.done + room, prompt.n)
                if stop > fill.done:
                    chunks.append(Chunk(fill, fill.done, stop))
                    room -= stop - fill.done
            logps = self._model.step(Rows(), [], chunks).log_softmax(-1)
            full = iter(logps)
            for prompt in [p for p in todo if p.fill.done == p.n]:
                prompt.logps = next(full).numpy()
            todo = [p for p in todo if p.logps is None]
        if prompts:
            ids, last = prompts[-1].fill.ids, prompts[-1].fill
            self._before = Fill(list(ids), last.wanted)
            self._before.kv, self._before.done = last.kv, last.done

    def _pass(self, asks: Sequence[Ask]) -> list[Read]:
        """One forward pass; the asks of a prompt are one chunk of its columns."""
        numbers: dict[int, list[int]] = {}
        for i, ask in enumerate(asks):
            numbers.setdefault(id(ask.prompt), []).append(i)
        order = [i for own in numbers.values() for i in own]
        tokens, positions, chunks, masks = [], [], [], []
        paths: dict[int, Columns] = {}
        for own in numbers.values():
            prompt = asks[own[0]].prompt
            start, stop = prompt.used, prompt.used + sum(len(asks[i].tokens) for i in own)
            _reserve(prompt.fill, stop)
            mask = torch.zeros(stop - start, stop, dtype=torch.bool)
            mask[:, : prompt.n] = True
            for i in own:
                _, path, new = asks[i]
                columns = range(prompt.used, prompt.used + len(new))
                here = slice(columns.start - start, columns.stop - start)
                mask[here, list(path)] = True
                mask[here, columns.start : columns.stop] = torch.ones(
                    len(new), len(new), dtype=torch.bool
                ).tril()
                tokens += new
                positions += range(prompt.n + len(path), prompt.n + len(path) + len(new))
                paths[i] = (*path, *columns)
                prompt.used = columns.stop
            chunks.append(Chunk(prompt.fill, start, stop))
            masks.append(mask)
        pack = Pack(Rows(), torch.empty(0, dtype=torch.long), None, chunks, masks)
        with _hidden_states(self._model) as seen:
            logps = self._model.run(tokens, positions, range(len(tokens)), pack).log_softmax(-1)
        sizes = [len(asks[i].tokens) for i in order]
        parts = zip(logps.split(sizes), seen[0].split(sizes), strict=True)
        found = {}
        for i, (logp, hidden) in zip(order, parts, strict=True):
            after = torch.tensor(asks[i].tokens[1:], dtype=torch.long)[:, None]
            own = logp[:-1].gather(1, after)[:, 0]
            found[i] = Read(paths[i], logp[-1].numpy().copy(), own.numpy(), hidden.numpy())
        return [found[i] for i in range(len(asks))]


@contextlib.contextmanager
def _hidden_states(model: PackedModel) -> Iterator[list[Tensor]]:
    """What goes into the model's output head meanwhile: a list of (k, d) tensors."""
    seen: list[Tensor] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].float()))
    try:
        yield seen
    finally:
        hook.remove()


def _reserve(fill: Fill, columns: int) -> None:
    had = fill.kv.shape[3]
    if columns > had:
        more = -(-columns // GRAIN) * GRAIN
        kv = fill.kv.new_zeros(*fill.kv.shape[:3], more, fill.kv.shape[4])
        kv[..., :had, :] = fill.kv
        fill.kv = kv


def _cut(asks: Sequence[Ask]) -> Iterator[list[Ask]]:
    """Asks in parts of up to ``TOKENS`` tokens; one that is longer is a part of its own."""
    part: list[Ask] = []
    size = 0
    for ask in asks:
        if part and size + len(ask.tokens) > TOKENS:
            yield part
            part, size = [], 0
        part.append(ask)
        size += len(ask.tokens)
    if part:
        yield part


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at the start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)))  # fmt: skip
