"""A language model on this machine: generation, log-probabilities and choices, in batches.

``stream`` is the core. Between two token steps it admits new requests and drops cancelled ones
(continuous batching: Yu et al., Orca, OSDI 2022); each step is one packed pass (stages.packed)
of one token for every running request and up to ``PREFILL`` prompt tokens. ``generate`` is its
client, ``choose`` is a client of ``logprobs``.

A prompt that begins like another one, read or being read, copies its keys and values instead
of reading that part again (radix attention: Zheng et al., SGLang, NeurIPS 2024, with a short
list in the place of the tree).

A greedy text does not depend on what else is in the batch, and a sample on nothing but its
request: float32 sums in another order differ by up to 2e-5, so only a tie that close could show.
Log-probabilities do show it, see ``pick``. Whether a token's probability is below a threshold
(``doubt_below``) does not: near it, the token is scored again, by its own sequence alone.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from stages.errors import QuarryError
from stages.models import read_training
from stages.packed import Chunk, Fill, PackedModel, Rows
from stages.prefixes import PrefixReader
from stages.spans import add_growth, clip_spans
from stages.types import Finish, Generation, Generator, Inbox, LogProb, Request, Span, TokenEvent
from stages.walks import tokenizer_print

ROWS = 32  # requests that run at once: 100 tokens a CPU second with 16, 131 with 32 (SmolLM2)
PREFILL = 512  # prompt tokens in a step; what a newcomer can delay the others by
WINDOW = 16_384  # columns of the cache over all rows
SHARED = 32  # common tokens that are worth waiting for
KEPT = 4_096  # tokens of prompts kept after they were read, for prompts that begin like them
NEAR = 1e-4  # of a threshold: here a probability must not depend on the batch
IDLE = 0.002  # seconds between two looks into an empty inbox


class ContextOverflow(QuarryError):
    """Request number ``index`` of a call does not fit the model's context."""

    def __init__(self, index: int, tokens: int, context: int) -> None:
        super().__init__(
            f"request {index} has {tokens} tokens; the model's context has {context}, with what "
            f"is generated. Show fewer or shorter passages."
        )
        self.index = index


def open_generator(folder: Path, *, threads: int = 1) -> Generator:
    """The generator of a model directory: on this machine, or behind its ``endpoint.json``.

    ``threads`` holds for all of torch in this process.
    """
    if (folder / "endpoint.json").exists():
        from stages.endpoint import EndpointGenerator

        return EndpointGenerator(folder)
    torch.set_num_threads(threads)
    return LocalGenerator(folder)


class LocalGenerator:
    """``stages.types.Generator`` with a transformers model in float32. For one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.fingerprint: str = read_training(folder, "generator")["fingerprint"]
        self._model = PackedModel(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = self._model.config
        self._eos = _eos(folder, config)
        self._start = next((t for t in (config.bos_token_id, *self._eos) if t is not None), 0)
        self._kept: list[Fill] = []  # prompts read lately, the most recently used last
        self._window = config.max_position_embeddings
        if getattr(config, "sliding_window", None):
            self._window = min(self._window, config.sliding_window)
        self.context = self._window - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self.calls = self.prompts = 0  # batch calls, and prompts in them and in streams

    @property
    def tokens(self) -> int:
        """Tokens that went through the model so far; what was reused is not among them."""
        return self._model.tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without what the model adds around a prompt."""
        return [len(ids) for ids in self._encode(texts, special=False)]

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One generation per request, in order.

        Raises:
            ContextOverflow: a prompt leaves no room in the context; nothing was generated.
        """
        prompts = self._prompts([r.prompt for r in requests])
        for i, ids in enumerate(prompts):
            if len(ids) >= self._window:
                raise ContextOverflow(i, len(ids), self._window)
        self.calls += bool(requests)
        # Long ones first, so that none is left running alone; equal prompts side by side.
        lengths = [len(p) + r.max_tokens for p, r in zip(prompts, requests, strict=True)]
        order = sorted(range(len(requests)), key=lambda i: (-(lengths[i] // 128), prompts[i], i))
        todo = deque(_Running(str(i), requests[i], prompts[i], self._window) for i in order)

        def admit(room: int) -> list[_Running]:
            return [todo.popleft() for _ in range(min(room, len(todo)))]

        events = self._run(admit, cancelled=tuple, closed=lambda: not todo)
        done = {event.request_id: event.done for event in events if event.done}
        return [done[str(i)] for i in range(len(requests))]

    def stream(self, inbox: Inbox) -> Iterator[TokenEvent]:
        """Events of all running requests, token step by token step.

        A prompt that leaves no room in ``context`` ends at once, with no tokens and finish
        ``length``; whoever admits it can count first.
        """

        def admit(room: int) -> list[_Running]:
            new = list(inbox.admit(room))
            prompts = self._prompts([r.prompt for _, r in new])
            return [
                _Running(name, request, ids, self._window)
                for (name, request), ids in zip(new, prompts, strict=True)
            ]

        return self._run(admit, inbox.cancelled, inbox.closed)

    def logprobs(self, prompts: Sequence[str], completions: Sequence[str]) -> list[LogProb]:
        """log p(completions[i] | prompts[i]); the two are tokenised separately.

        An empty completion has log-probability 0 over 0 tokens.

        Raises:
            ContextOverflow: a prompt and its completion do not fit the context.
        """
        pairs = list(zip(
            self._prompts(prompts), self._encode(completions, special=False), strict=True
        ))  # fmt: skip
        for i, (prompt, completion) in enumerate(pairs):
            if len(prompt) + len(completion) > self._window:
                raise ContextOverflow(i, len(prompt) + len(completion), self._window)
        order = sorted((i for i, (_, c) in enumerate(pairs) if c), key=lambda i: (pairs[i], i))
        self.calls += bool(order)
        # The last token is only a target: nothing is read after it.
        todo = deque((i, Fill(pairs[i][0] + pairs[i][1][:-1], len(pairs[i][0]) - 1)) for i in order)
        totals = [0.0] * len(pairs)
        filling: dict[Fill, int] = {}
        while todo or filling:
            while todo and len(filling) < ROWS:
                i, fill = todo.popleft()
                self._enter(fill, filling)
                filling[fill] = i
            chunks = self._chunks(filling)
            logps = self._model.step(Rows(), [], chunks).log_softmax(-1)
            parts = logps.split([len(chunk.scored) for chunk in chunks])
            for chunk, ours in zip(chunks, parts, strict=True):
                i = filling[chunk.fill]
                targets = [(pairs[i][0] + pairs[i][1])[p + 1] for p in chunk.scored]
                at = torch.tensor(targets, dtype=torch.long)[:, None]
                totals[i] += ours.gather(1, at).double().sum().item()
                if self._is_full(chunk.fill):
                    del filling[chunk.fill]
        return [LogProb(t, len(c)) for t, (_, c) in zip(totals, pairs, strict=True)]

    def choose(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-probability of each option, per prompt; a prompt is read once for all of its."""
        flat = [(p, o) for p, os in zip(prompts, options, strict=True) for o in os]
        logps = iter(self.logprobs([p for p, _ in flat], [o for _, o in flat]))
        return [[next(logps).total for _ in os] for os in options]

    def reads_prefixes(self) -> PrefixReader:
        """What reads many continuations of a prompt as a tree (``stages.prefixes``)."""
        return PrefixReader(
            self._model, self._prompts, self._tokenizer.decode, self._window,
            tokenizer_print(self._tokenizer),
        )  # fmt: skip

    def forget(self) -> None:
        """Drop the prompts that were kept for others to begin like them."""
        self._kept.clear()

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as the model wants a prompt; an empty one is the token that starts a text."""
        self.prompts += len(texts)
        return [ids or [self._start] for ids in self._encode(texts, special=True)]

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=special)
        return [e.ids for e in encodings]

    def _run(
        self,
        admit: Callable[[int], list["_Running"]],
        cancelled: Callable[[], Iterable[str]],
        closed: Callable[[], bool],
    ) -> Iterator[TokenEvent]:
        """Between token steps: let go, let in; then a step, and what came of it."""
        rows = Rows()
        running: list[_Running] = []  # running[i] is row i
        filling: dict[Fill, _Running] = {}
        waiting: deque[_Running] = deque()  # let in, but the cache has no room yet
        while True:
            last = closed()  # asked before admit: what came before the closing is not missed
            if gone := set(cancelled()):
                for one in [*running, *filling.values(), *waiting]:
                    if one.name in gone:
                        yield one.end("cancelled")
                self._forget(rows, running, filling)
                waiting = deque(one for one in waiting if not one.ended)

            if (room := ROWS - len(running) - len(filling) - len(waiting)) > 0:
                waiting.extend(admit(room))
            while waiting and _fits([*running, *filling.values(), waiting[0]]):
                one = waiting.popleft()
                if one.limit > 0:
                    self._enter(one.fill, filling)
                    filling[one.fill] = one
                else:
                    yield one.end("length")
            if not running and not filling:
                if last and not waiting:
                    return
                time.sleep(IDLE)
                continue

            chunks = self._chunks(filling)
            logits = self._model.step(rows, [one.out[-1] for one in running], chunks)
            full = [chunk.fill for chunk in chunks if self._is_full(chunk.fill)]
            speaking = [*running, *(filling[fill] for fill in full)]
            best = logits.argmax(-1).tolist()
            for one, token, its_logits in zip(speaking, best, logits, strict=True):
                if one.request.temperature > 0:
                    token = sample(its_logits, one.request, one.random)
                doubted = self._doubted(one, token, its_logits) if one.doubts else ()
                yield one.hear(token, self._tokenizer, self._eos, doubted)
            for fill in full:
                rows.add(fill)
                running.append(filling.pop(fill))
            self._forget(rows, running, filling)

    def _doubted(self, one: "_Running", token: int, logits: Tensor) -> list[bool]:
        """Whether the token's probability is below each threshold; from 1 on, it is.

        Between batch shapes it differs by less than ``NEAR``. Nearer to a threshold it is that
        of the sequence read alone, in steps of one size: the same number in any company.
        """
        p = logits.softmax(-1)[token].item()
        thresholds = one.request.doubt_below
        if any(abs(p - threshold) < NEAR for threshold in thresholds if threshold < 1):
            ids = one.fill.ids + one.out
            alone = Fill(ids, len(ids) - 1)
            self._model.start(alone)
            for start in range(0, len(ids), PREFILL):
                chunk = Chunk(alone, start, min(start + PREFILL, len(ids)))
                logits = self._model.step(Rows(), [], [chunk])
            p = logits[-1].softmax(-1)[token].item()
        return [threshold >= 1 or p < threshold for threshold in thresholds]

    def _forget(
        self, rows: Rows, running: list["_Running"], filling: dict[Fill, "_Running"]
    ) -> None:
        """Free the places of what has ended."""
        for i in reversed(range(len(running))):
            if running[i].ended:
                running[i] = running[-1]
                running.pop()
                rows.drop(i)
        for fill in [fill for fill, one in filling.items() if one.ended]:
            del filling[fill]
            for other in filling:
                if other.donor is fill:
                    other.orphan()

    def _enter(self, fill: Fill, filling: Iterable[Fill]) -> None:
        """Find whom a new prompt can copy from: one that was read, or one that is being read.

        Of those still being read the first that has about the most: each waiting for its
        neighbour would be a chain of small steps.
        """
        common = {other: min(_common(fill.ids, other.ids), fill.wanted) for other in self._kept}
        known = sorted(common, key=common.__getitem__, reverse=True)
        common |= {other: min(_common(fill.ids, other.ids), fill.wanted) for other in filling}
        enough = max(SHARED, max(common.values(), default=0) - SHARED + 1)
        fill.donor = next((other for other in (*known, *filling) if common[other] >= enough), None)
        if fill.donor is not None:
            fill.shared = common[fill.donor]
            if fill.donor in self._kept:
                self._keep(fill.donor)

    def _chunks(self, filling: Iterable[Fill]) -> list[Chunk]:
        """The next ``PREFILL`` tokens of the prompts, first come, first read."""
        chunks, room = [], PREFILL
        for fill in filling:
            if room == 0:
                break
            if fill.waits:
                continue
            if fill.kv is None:
                self._model.start(fill)
            stop = min(fill.done + room, len(fill.ids))
            chunks.append(Chunk(fill, fill.done, stop))
            room -= stop - fill.done
        return chunks

    def _is_full(self, fill: Fill) -> bool:
        """Whether all of it is read; from then on others may copy it."""
        if fill.done < len(fill.ids):
            return False
        self._keep(fill)
        return True

    def _keep(self, fill: Fill) -> None:
        """Put it at the end of the kept; the first go when there are more than ``KEPT`` tokens."""
        self._kept = [*(f for f in self._kept if f is not fill), fill]
        while sum(len(f.ids) for f in self._kept) > KEPT:
            del self._kept[0]


class _Running:
    """One request on its way: what it generated, and how much of that was said."""

    def __init__(self, name: str, request: Request, ids: list[int], window: int) -> None:
        if "" in request.stop or request.temperature < 0 or not 0 < request.top_p <= 1:
            raise ValueError(f"not a request: {request._replace(prompt='...')}")
        self.name, self.request = name, request
        self.fill = Fill(ids, len(ids) - 1)
        self.limit = min(request.max_tokens, window - len(ids))
        if request.temperature > 0:
            self.random = torch.Generator().manual_seed(request.seed)
        self.out: list[int] = []
        self.doubts: list[list[Span]] = [[] for _ in request.doubt_below]
        self.text = self.said = ""
        self.ended = False

    def hear(
        self, token: int, tokenizer: Tokenizer, eos: frozenset[int], doubted: Iterable[bool]
    ) -> TokenEvent:
        """Take the next token, and which thresholds its probability is below."""
        self.out.append(token)
        if token in eos:
            return self.end("eos")
        text = tokenizer.decode(self.out, skip_special_tokens=True)
        for spans, low in zip(self.doubts, doubted, strict=True):
            if low:
                add_growth(spans, self.text, text)
        if found := [at for at in map(text.find, self.request.stop) if at >= 0]:
            self.text = text[: min(found)]
            return self.end("stop")
        self.text = text
        if len(self.out) == self.limit:
            return self.end("length")
        new = settled(text, self.request.stop)[len(self.said) :]
        self.said += new
        return TokenEvent(self.name, new, None)

    def end(self, finish: Finish) -> TokenEvent:
        """The last event, with the text that was held back."""
        self.ended = True
        doubts = tuple(clip_spans(spans, 0, len(self.text)) for spans in self.doubts)
        done = Generation(self.text, len(self.fill.ids), len(self.out), finish, doubts)
        return TokenEvent(self.name, self.text[len(self.said) :], done)


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of a growing text that is final: no stop string can take it back.

    A character of several bytes shows as U+FFFD until its last token is there.
    """
    text = text.rstrip("\ufffd")
    held = 0
    for s in stop:
        begun = (k for k in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:k]))
        held = max(held, next(begun, 0))
    return text[: len(text) - held]


def sample(logits: Tensor, request: Request, random: torch.Generator) -> int:
    """A token drawn from softmax(logits / temperature), cut to the nucleus; logits is (v,).

    The nucleus is the fewest likeliest tokens with probability ``top_p`` or more together
    (Holtzman et al., ICLR 2020); equal ones by smaller id. One number is drawn per token.
    """
    p = (logits.double() / request.temperature).softmax(-1)
    u = torch.rand((), generator=random, dtype=torch.float64)
    if request.top_p == 1:
        return min(int(torch.searchsorted(p.cumsum(0), u, right=True)), len(p) - 1)
    p, ids = p.sort(descending=True, stable=True)
    cumulative = p.cumsum(0)
    inside = int(torch.searchsorted(cumulative, request.top_p)) + 1  # tokens in the nucleus
    cumulative = cumulative[:inside]
    at = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
    return int(ids[min(at, len(cumulative) - 1)])


def _fits(requests: Sequence[_Running]) -> bool:
    """Whether the cache has columns for all of these; one alone always fits."""
    longest = max(len(one.fill.ids) + one.limit for one in requests)
    return len(requests) == 1 or len(requests) * longest <= WINDOW


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at the start; fewer than ``SHARED`` give 0."""
    if a[:SHARED] != b[:SHARED]:
        return 0
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _eos(folder: Path, config: Any) -> frozenset[int]:
    """The tokens that end a text: as the directory says for generation, else as its config does."""
    path = folder / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ids = said.get("eos_token_id", config.eos_token_id)
    return frozenset([ids] if isinstance(ids, int) else ids or [])
