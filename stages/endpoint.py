"""A language model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, or a service.

The same ``Generator`` as the local one, spoken over ``/v1/completions``. Requests go out side
by side, at most ``AT_ONCE``, and the server schedules them. What it cannot do now (connection
refused, 429, 5xx, no answer in time, a stream that breaks before its first token) is tried again
with growing pauses. A request that it will never answer (400: too long a prompt, say) is
``Refused`` alone; what concerns all (no key, no such model) is an error at once. Texts are the
server's: that they do not change with its load is its promise to make, not ours.

Log-probabilities of a given text come by whichever way the server has: ``echo`` (vLLM, SGLang)
scores all tokens in one request; llama.cpp has no echo, but names the probabilities of the next
token with their ids, so that its texts are scored token by token. Both need ``/tokenize``.

A server without ``/tokenize`` tells a text's length only in the bill of a completion, and cutting
passages asks for a dozen lengths each. Lengths are then estimated: ``BYTES`` of UTF-8 a token,
which is fewer than English has (4 to 5), so that prompts come out shorter than allowed and not
longer. What a generation cost is still the server's count.
"""

import contextlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx

from stages.errors import QuarryError, Refused
from stages.models import read_training
from stages.spans import add_growth, clip_spans
from stages.types import Finish, Generation, Inbox, LogProb, Request, Span, TokenEvent

log = logging.getLogger(__name__)

AT_ONCE = 16  # requests under way
TRIES = 5
PAUSE = 0.5  # seconds before the second try; doubles with every one
LONGEST_PAUSE = 30.0  # also for what the server asks for by Retry-After
TIMEOUT = httpx.Timeout(300.0, connect=5.0)  # seconds; reading waits for a whole generation
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
THIS_ONE = frozenset({400, 413, 422})  # what is wrong is the request
ABSENT = frozenset({404, 405, 501})  # there is no such route
BYTES = 3  # of a text per token, where the server does not show its tokens
TOP, ALL = 100, 1_000_000  # next tokens to ask for: the likely ones first, then the vocabulary
IDLE = 0.005  # seconds between two looks into an inbox when nothing comes

T = TypeVar("T")


class EndpointGenerator:
    """``stages.types.Generator`` over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.fingerprint: str = read_training(folder, "generator")["fingerprint"]
        said = json.loads((folder / "endpoint.json").read_text(encoding="utf-8"))
        self.base_url, self.model = said["base_url"].rstrip("/"), said["model"]
        headers = {}
        if variable := said["api_key_env"]:
            if not os.environ.get(variable):
                raise QuarryError(
                    f"{folder}: the key of {self.base_url} is read from the environment variable "
                    f"{variable}, which is not set. Set it, or correct api_key_env."
                )
            headers["Authorization"] = f"Bearer {os.environ[variable]}"
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT, limits=limits)
        self.calls = self.prompts = self.tokens = 0  # batch calls, prompts, tokens in and out

    @cached_property
    def context(self) -> int | None:
        """The server's limit on prompt and completion together; None where it does not tell.

        None also where lengths are estimated: what is too long, the server knows, and refuses.
        """
        if not self._tokenises:
            return None
        listed = self._get("/models").get("data") or [{}]
        entry = next((m for m in listed if m.get("id") == self.model), listed[0])
        return entry.get("max_model_len") or (entry.get("meta") or {}).get("n_ctx")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, without what the model adds around a prompt.

        An estimate where the server does not show its tokens: bytes / 3, rounded up.
        """
        return self._each(self._count, texts) if self._tokenises else list(map(_estimate, texts))

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One generation per request, in order.

        Raises:
            QuarryError: the server is down, or refuses a request (``Refused``).
        """
        self._tally(len(requests))
        generations = self._each(self._generate, requests)
        self.tokens += sum(g.tokens_in + g.tokens_out for g in generations)
        return generations

    def logprobs(self, prompts: Sequence[str], completions: Sequence[str]) -> list[LogProb]:
        """log p(completions[i] | prompts[i]); the two are tokenised separately.

        Raises:
            QuarryError: also if the server has no way to score a given text.
        """
        pairs = list(zip(prompts, completions, strict=True))
        self._tally(len(pairs))
        texts = list(dict.fromkeys([(p, True) for p, _ in pairs] + [(c, False) for _, c in pairs]))
        ids = dict(zip(texts, self._each(lambda t: self._tokenise(*t), texts), strict=True))
        known: dict[tuple[int, ...], dict[int, float]] = {}

        def score(pair: tuple[str, str]) -> LogProb:
            prompt, completion = ids[pair[0], True], ids[pair[1], False]
            return LogProb(self._score(prompt, completion, known), len(completion))

        return self._each(score, pairs)

    def choose(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-probability of each option, per prompt."""
        flat = [(p, o) for p, os in zip(prompts, options, strict=True) for o in os]
        logps = iter(self.logprobs([p for p, _ in flat], [o for _, o in flat]))
        return [[next(logps).total for _ in os] for os in options]

    def stream(self, inbox: Inbox) -> Iterator[TokenEvent]:
        """Events of all running requests, as the server sends them.

        A cancelled request's connection is closed, at which servers stop generating. Several
        tokens may come in one event. A request that the server refuses ends with that, and the
        others go on.
        """
        said: queue.SimpleQueue[tuple[str, str | Generation | Exception]] = queue.SimpleQueue()
        texts: dict[str, list[str]] = {}
        asked: dict[str, Request] = {}
        stops: dict[str, threading.Event] = {}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                while True:
                    last = inbox.closed()  # asked before admit
                    for name in inbox.cancelled():
                        if name in stops:
                            stops.pop(name).set()
                            request, said_so_far = asked.pop(name), texts.pop(name)
                            yield TokenEvent(name, "", self._cut(request, said_so_far))
                    if (room := AT_ONCE - len(stops)) > 0:
                        for name, request in inbox.admit(room):
                            self.prompts += 1
                            asked[name], texts[name] = request, []
                            stops[name] = threading.Event()
                            pool.submit(self._listen, name, request, stops[name], said.put)
                    if last and not stops:
                        return
                    try:
                        name, what = said.get(timeout=IDLE)
                    except queue.Empty:
                        continue
                    if name not in stops:
                        continue  # it was cancelled
                    if isinstance(what, Refused):
                        del stops[name], asked[name], texts[name]
                        yield TokenEvent(name, "", what)
                    elif isinstance(what, Exception):
                        raise what
                    elif isinstance(what, str):
                        texts[name].append(what)
                        yield TokenEvent(name, what, None)
                    else:
                        del stops[name], asked[name], texts[name]
                        self.tokens += what.tokens_in + what.tokens_out
                        yield TokenEvent(name, "", what)
            finally:
                for stop in stops.values():
                    stop.set()

    def _tally(self, prompts: int) -> None:
        self.calls += bool(prompts)
        self.prompts += prompts

    def _each(self, work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """``work`` on every item, side by side; the first error stops what has not begun."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _generate(self, request: Request) -> Generation:
        if request.max_tokens == 0:  # some servers make one token of it
            nothing = ((),) * len(request.doubt_below)
            return Generation("", self._count(request.prompt), 0, "length", nothing)
        answer = self._post("/completions", self._body(request))
        try:
            choice, usage = answer["choices"][0], answer["usage"]
            told = _tokens(choice.get("logprobs"))
            return self._generation(request, choice["text"], choice, usage, told)
        except (KeyError, IndexError) as e:
            raise QuarryError(
                f"{self._where}: its answer lacks {e}; it has {sorted(answer)}."
            ) from e

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.doubt_below:
            body["logprobs"] = 1
        if request.temperature > 0:  # the plain nucleus: servers cut further by default
            body |= {"top_p": request.top_p, "top_k": -1, "min_p": 0.0}
            body["seed"] = request.seed % 2**31
        return body

    def _generation(
        self, request: Request, text: str, choice: dict[str, Any], usage: dict[str, int],
        told: Sequence[tuple[bytes, float]],
    ) -> Generation:  # fmt: skip
        """What came; ``stop`` and ``eos`` are told apart as far as the server does (vLLM)."""
        reason = choice.get("finish_reason")
        finish: Finish = "length" if reason == "length" else "stop" if request.stop else "eos"
        if finish == "stop" and "stop_reason" in choice:
            finish = "stop" if isinstance(choice["stop_reason"], str) else "eos"
        if request.doubt_below and text and not told:
            raise QuarryError(
                f"{self._where}: tells no log-probabilities of what it writes. Use another "
                f"server, or a strategy that does not ask where a text is in doubt."
            )
        doubts = tuple(_doubts(text, told, threshold) for threshold in request.doubt_below)
        counts = usage["prompt_tokens"], usage["completion_tokens"]
        return Generation(text, *counts, finish, doubts)

    def _cut(self, request: Request, said: list[str]) -> Generation:
        text = "".join(said)
        tokens_in, tokens_out = self._count(request.prompt), self._count(text)
        unknown = ((),) * len(request.doubt_below)
        return Generation(text, tokens_in, tokens_out, "cancelled", unknown)

    def _listen(
        self, name: str, request: Request, stop: threading.Event,
        put: Callable[[tuple[str, str | Generation | Exception]], None],
    ) -> None:  # fmt: skip
        """Put every piece of a streamed answer, and at its end the whole."""
        url, body = f"{self.base_url}/completions", self._body(request)
        body |= {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        try:
            if request.max_tokens == 0:
                put((name, self._generate(request)))
                return
            whole = self._ask(
                "POST", url, body,
                lambda response: self._hear(response, request, stop, lambda t: put((name, t))),
            )  # fmt: skip
            if whole is not None:
                put((name, whole))
        except Exception as e:  # the reader of the queue raises it
            put((name, e))

    def _hear(
        self, response: httpx.Response, request: Request, stop: threading.Event,
        put: Callable[[str], None],
    ) -> Generation | None:  # fmt: skip
        """The whole of a streamed answer, its pieces on the way; None if told to stop.

        A connection that breaks before the first piece may be tried again; later, a part of one
        text would be told twice, or be followed by another's.
        """
        pieces: list[str] = []
        told: list[tuple[bytes, float]] = []
        choice: dict[str, Any] = {}
        usage = None
        try:
            for line in response.iter_lines():
                if stop.is_set():
                    return None
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                part = json.loads(line.removeprefix("data:"))
                if "error" in part:
                    raise self._told_in_stream(part["error"], begun=bool(pieces))
                usage = part.get("usage") or usage
                for piece in part["choices"]:
                    choice = piece if piece.get("finish_reason") else choice
                    told += _tokens(piece.get("logprobs"))
                    if piece["text"]:
                        pieces.append(piece["text"])
                        put(piece["text"])
        except httpx.TransportError as e:
            if not pieces:
                raise
            raise QuarryError(f"{self._where}: broke off in the middle of a text: {e!r}.") from e
        if usage is None:
            raise QuarryError(f"{self._where}: the stream ended before its usage was told.")
        return self._generation(request, "".join(pieces), choice, usage, told)

    def _told_in_stream(self, error: Any, *, begun: bool) -> QuarryError:
        """The error of a server that answers 200 first and then finds the request bad."""
        code = error.get("code") if isinstance(error, dict) else None
        kind = Refused if code in THIS_ONE and not begun else QuarryError
        return kind(f"{self._where}: stopped {'in the middle' if begun else 'at once'}: {error}")

    def _count(self, text: str) -> int:
        return len(self._tokenise(text, special=False)) if self._tokenises else _estimate(text)

    @cached_property
    def _tokenises(self) -> bool:
        """Whether the server shows its tokens."""
        try:
            self._tokenise("one", special=False)
        except _Absent:
            log.warning("%s has no /tokenize: lengths of texts are estimated", self._where)
            return False
        return True

    def _tokenise(self, text: str, special: bool) -> list[int]:
        """Token ids, by the route that vLLM, SGLang and llama.cpp have beside ``/v1``."""
        url = self.base_url.removesuffix("/v1") + "/tokenize"
        body = {
            "model": self.model, "prompt": text, "content": text,
            "add_special_tokens": special, "add_special": special,
        }  # fmt: skip
        return self._ask("POST", url, body, self._read)["tokens"]

    def _score(
        self, prompt: list[int], completion: list[int], known: dict[tuple[int, ...], dict]
    ) -> float:
        """log p of the completion's tokens; ``known`` keeps next-token tables between options."""
        if not completion:
            return 0.0
        if not prompt:
            raise QuarryError(f"{self._where}: a text after an empty prompt cannot be scored.")
        if self._echoes:
            told = self._echo(prompt + completion)
            return sum(told[len(prompt) : len(prompt) + len(completion)])
        total = 0.0
        for i, token in enumerate(completion):
            before = tuple(prompt + completion[:i])
            if token not in known.get(before, {}):
                known[before] = self._next(before, TOP)
            if token not in known[before]:
                known[before] = self._next(before, ALL)
            total += known[before][token]
        return total

    @cached_property
    def _echoes(self) -> bool:
        """Whether the server scores a prompt's own tokens."""
        return self._echo(self._tokenise("one two three", special=True)) is not None

    def _echo(self, ids: list[int]) -> list[float] | None:
        """The log-probability of every token given those before it (the first has none)."""
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
        answer = self._post("/completions", body)
        told = (answer["choices"][0].get("logprobs") or {}).get("token_logprobs")
        return told if told is not None and len(told) >= len(ids) else None

    def _next(self, ids: Sequence[int], n: int) -> dict[int, float]:
        """Log-probabilities of the n likeliest next tokens, by id."""
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "logprobs": n}
        answer = self._post("/completions", body)
        told = (answer["choices"][0].get("logprobs") or {}).get("content")
        if not told or "id" not in (told[0].get("top_logprobs") or [{}])[0]:
            raise QuarryError(
                f"{self._where}: gives no log-probabilities for a given text, neither by echo (as "
                f"vLLM and SGLang) nor by token id (as llama.cpp). Use another server, or a "
                f"strategy that only generates."
            )
        return {top["id"]: top["logprob"] for top in told[0]["top_logprobs"]}

    @property
    def _where(self) -> str:
        return f"generator '{self.model}' at {self.base_url}"

    def _get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", self.base_url + path, None, self._read)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        body = {"model": self.model, **body}
        return self._ask("POST", self.base_url + path, body, self._read)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        response.read()
        try:
            return response.json()
        except ValueError:
            raise QuarryError(
                f"{self._where}: answered something that is not JSON: {response.text[:80]!r}. "
                f"Is base_url the address of an OpenAI-compatible server, up to /v1?"
            ) from None

    def _ask(
        self, method: str, url: str, body: dict[str, Any] | None,
        read: Callable[[httpx.Response], T],
    ) -> T:  # fmt: skip
        """What ``read`` makes of a good answer; after ``TRIES`` failures an error.

        A connection that breaks while it reads is a failure like one that does not come about.
        """
        problem, pause = "", 0.0
        for attempt in range(TRIES):
            time.sleep(pause)
            pause = min(PAUSE * 2**attempt, LONGEST_PAUSE)
            request = self._client.build_request(method, url, json=body)
            try:
                with contextlib.closing(self._client.send(request, stream=True)) as response:
                    if response.is_success:
                        return read(response)
                    response.read()
            except httpx.TransportError as e:
                problem = f"{type(e).__name__} ({e})"
                continue
            status = response.status_code
            problem = f"HTTP {status}: {response.text[:300]}"
            if status not in AGAIN:
                kind = (
                    Refused if status in THIS_ONE else _Absent if status in ABSENT else QuarryError
                )
                raise kind(f"{self._where}: refused a request. {problem}")
            asked = response.headers.get("retry-after", "")
            pause = min(float(asked), LONGEST_PAUSE) if asked.isdigit() else pause
        raise QuarryError(
            f"{self._where}: no answer in {TRIES} tries; at last {problem}. Start the server "
            f"(make llm starts one here), or correct base_url in params.yaml."
        )


class _Absent(QuarryError):
    """The server has no such route (or no such model)."""


def _estimate(text: str) -> int:
    """About how many tokens, rather more than fewer: bytes / ``BYTES``, rounded up."""
    return -(-len(text.encode()) // BYTES)


def _tokens(logprobs: dict[str, Any] | None) -> list[tuple[bytes, float]]:
    """(token, log-probability) of a text: as OpenAI's two lists, or as llama.cpp's records."""
    if not logprobs:
        return []
    if records := logprobs.get("content"):
        return [(_bytes(r), r["logprob"]) for r in records]
    tokens, logps = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    return [(token.encode(), logp) for token, logp in zip(tokens, logps, strict=True)]


def _bytes(record: dict[str, Any]) -> bytes:
    raw = record.get("bytes")
    return record["token"].encode() if raw is None else bytes(raw)


def _doubts(text: str, told: Iterable[tuple[bytes, float]], threshold: float) -> tuple[Span, ...]:
    """The spans of ``text`` whose tokens are less probable than ``threshold``; from 1 on, all."""
    spans: list[Span] = []
    said = b""
    for token, logp in told:
        before, said = said, said + token
        if threshold >= 1 or math.exp(logp) < threshold:
            add_growth(spans, before.decode(errors="replace"), said.decode(errors="replace"))
    return clip_spans(spans, 0, len(text))
