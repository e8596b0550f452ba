"""The endpoint client against a server that misbehaves on purpose (plumbing; no model here)."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from language_models import Script

from stages import endpoint
from stages.effects import LLM, Choice, Outcome, Question
from stages.endpoint import EndpointGenerator
from stages.errors import QuarryError, Refused
from stages.lm import open_generator
from stages.loop import run_loop
from stages.models import write_training
from stages.prompts import cut_passages
from stages.tools import Tools
from stages.types import Generation, LogProb, Passage, Request

Answer = tuple[int, dict[str, str], bytes]


def good(text: str = "ok", *, finish: str = "stop", **choice: Any) -> Answer:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choices = [{"text": text, "finish_reason": finish, **choice}]
    return 200, {}, json.dumps({"choices": choices, "usage": usage}).encode()


def bad(status: int, text: str = "no", **headers: str) -> Answer:
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, text.encode()


class Server(ThreadingHTTPServer):
    """Answers by ``self.answer(path, body)``; notes every request; counts those at once."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: Callable[[str, dict], Answer] = lambda path, body: good()
        self.asked: list[tuple[str, dict]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is expected here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
        with self.server.lock:
            self.server.asked.append((self.path, body))
            self.server.headers.append(dict(self.headers))
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            status, headers, content = self.server.answer(self.path, body)
        finally:
            with self.server.lock:
                self.server.now -= 1
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        thread = threading.Thread(target=it.serve_forever, args=(0.01,))
        thread.start()
        yield it
        it.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """How long the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", slept.append)
    return slept


def folder_of(folder: Path, url: str, variable: str = "") -> Path:
    said = {"base_url": url, "model": "m", "api_key_env": variable}
    (folder / "endpoint.json").write_text(json.dumps(said))
    write_training(folder, "generator", recipe="pretrained", source=said)
    return folder


@pytest.fixture
def generator(server, tmp_path, pauses) -> EndpointGenerator:
    return open_generator(folder_of(tmp_path, server.url))


def in_turn(*answers: Answer) -> Callable[[str, dict], Answer]:
    left = list(answers)
    return lambda path, body: left.pop(0) if len(left) > 1 else left[0]


def test_a_busy_server_is_asked_again_with_growing_pauses(server, generator, pauses) -> None:
    server.answer = in_turn(bad(503), bad(429), bad(500), good("at last"))
    assert generator.generate([Request("p", 4)])[0].text == "at last"
    assert len(server.asked) == 4
    assert pauses == [0.0, 0.5, 1.0, 2.0]


def test_a_server_that_says_when_is_believed_up_to_a_limit(server, generator, pauses) -> None:
    server.answer = in_turn(bad(429, retry_after="7"), bad(429, retry_after="9999"), good())
    generator.generate([Request("p", 4)])
    assert pauses == [0.0, 7.0, endpoint.LONGEST_PAUSE]


def test_after_all_tries_the_error_says_what_where_and_what_to_do(server, generator) -> None:
    server.answer = lambda path, body: bad(503, "loading model")
    with pytest.raises(QuarryError) as e:
        generator.generate([Request("p", 4)])
    assert len(server.asked) == endpoint.TRIES
    for part in ("'m'", server.url, f"{endpoint.TRIES} tries", "503", "loading model", "make llm"):
        assert part in str(e.value)


def test_a_server_that_is_down_is_named(tmp_path, pauses) -> None:
    with Server() as gone:
        url = gone.url
    down = open_generator(folder_of(tmp_path, url))
    with pytest.raises(QuarryError, match=r"no answer in 5 tries.*ConnectError.*base_url"):
        down.generate([Request("p", 4)])
    with pytest.raises(QuarryError, match="ConnectError"):
        list(down.stream(Script({0: [("a", Request("p", 4))]})))


def test_a_server_that_never_answers_is_given_up(server, generator, monkeypatch) -> None:
    done = threading.Event()

    def silence(path: str, body: dict) -> Answer:
        done.wait(10)
        return good()

    server.answer = silence
    generator._client.timeout = httpx.Timeout(0.05)
    start = time.perf_counter()
    with pytest.raises(QuarryError, match="ReadTimeout"):
        generator.generate([Request("p", 4)])
    done.set()
    assert time.perf_counter() - start < 5


def test_what_a_server_refuses_is_not_asked_again(server, generator) -> None:
    server.answer = lambda path, body: bad(400, "prompt exceeds the context")
    with pytest.raises(QuarryError, match=r"refused a request. HTTP 400: prompt exceeds"):
        generator.generate([Request("p", 4)])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "not JSON: '<html>'.*OpenAI-compatible"),
        (b'{"choices": [{"text": "x"}]}', "lacks 'usage'; it has"),
        (b'{"choices": [], "usage": {}}', "lacks list index"),
    ],
)
def test_an_answer_of_another_kind_is_an_error(server, generator, content, message) -> None:
    server.answer = lambda path, body: (200, {}, content)
    with pytest.raises(QuarryError, match=message):
        generator.generate([Request("p", 4)])


def test_the_key_comes_from_the_environment_and_its_absence_is_named(
    server, tmp_path, monkeypatch
) -> None:
    folder = folder_of(tmp_path, server.url, "QUARRY_TEST_KEY")
    monkeypatch.delenv("QUARRY_TEST_KEY", raising=False)
    with pytest.raises(QuarryError, match="variable QUARRY_TEST_KEY, which is not set"):
        open_generator(folder)
    monkeypatch.setenv("QUARRY_TEST_KEY", "s3cret")
    open_generator(folder).generate([Request("p", 4)])
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


def test_results_keep_the_order_and_no_more_than_at_once_are_under_way(
    server, generator, monkeypatch
) -> None:
    monkeypatch.setattr(endpoint, "AT_ONCE", 3)

    def slower_for_the_first(path: str, body: dict) -> Answer:
        threading.Event().wait(0.02 if body["prompt"] == "p0" else 0.005)
        return good(body["prompt"] + "!")

    server.answer = slower_for_the_first
    got = generator.generate([Request(f"p{i}", 4) for i in range(12)])
    assert [g.text for g in got] == [f"p{i}!" for i in range(12)]
    assert 1 < server.most <= 3
    assert (generator.calls, generator.prompts, generator.tokens) == (1, 12, 12 * 5)


def test_a_greedy_request_says_so_and_a_sampled_one_asks_for_the_plain_nucleus(
    server, generator
) -> None:
    generator.generate([Request("p", 4, stop=("\n",))])
    generator.generate([Request("p", 4, temperature=0.7, top_p=0.9, seed=2**40 + 5)])
    (_, greedy), (path, sampled) = server.asked
    assert path == "/v1/completions"
    assert greedy == {
        "model": "m", "prompt": "p", "max_tokens": 4, "temperature": 0.0, "stop": ["\n"]
    }  # fmt: skip
    assert sampled["seed"] == (2**40 + 5) % 2**31
    assert (sampled["temperature"], sampled["top_p"]) == (0.7, 0.9)
    assert (sampled["top_k"], sampled["min_p"]) == (-1, 0.0), "no server default cuts further"


@pytest.mark.parametrize(
    ("answer", "stop", "finish"),
    [
        (good(finish="length"), ("\n",), "length"),
        (good(finish="stop"), (), "eos"),
        (good(finish="stop"), ("\n",), "stop"),  # llama.cpp does not say which
        (good(finish="stop", stop_reason=None), ("\n",), "eos"),  # vLLM does
        (good(finish="stop", stop_reason="\n"), ("\n",), "stop"),
    ],
)
def test_why_it_ended_is_told_as_far_as_the_server_tells(
    server, generator, answer, stop, finish
) -> None:
    server.answer = lambda path, body: answer
    assert generator.generate([Request("p", 4, stop=stop)])[0] == Generation("ok", 3, 2, finish)


def like_vllm(path: str, body: dict) -> Answer:
    """One token per character; token i of a text has log-probability -i / 8 (its first none)."""
    if path == "/tokenize":
        ids = list(body["prompt"].encode())
        return 200, {}, json.dumps({"tokens": ids, "count": len(ids)}).encode()
    n = len(body["prompt"])
    logprobs = {"token_logprobs": [None, *(-i / 8 for i in range(1, n + 1))], "tokens": []}
    return good("", logprobs=logprobs)


def test_log_probabilities_by_echo_are_summed_over_the_completion(server, generator) -> None:
    server.answer = like_vllm
    assert generator.logprobs(["abc", "a"], ["de", ""]) == [
        LogProb(-3 / 8 - 4 / 8, 2), LogProb(0.0, 0)
    ]  # fmt: skip
    assert generator.choose(["ab"], [["x", "xyz"]]) == [[-2 / 8, -2 / 8 - 3 / 8 - 4 / 8]]
    assert generator.count_tokens(["four", ""]) == [4, 0]
    with pytest.raises(QuarryError, match="empty prompt"):
        generator.logprobs([""], ["x"])


def test_a_server_without_any_log_probabilities_is_named(server, generator) -> None:
    server.answer = lambda path, body: like_vllm(path, body) if path == "/tokenize" else good()
    with pytest.raises(QuarryError, match=r"neither by echo.*nor by token id"):
        generator.choose(["ab"], [["x"]])


def test_a_server_that_hides_its_tokens_is_not_paid_for_lengths(server, generator) -> None:
    server.answer = lambda path, body: bad(404) if path == "/tokenize" else good()
    texts = ["some text!", "", "\u5c71\u5ddd", "word " * 200]
    # bytes: 10, 0, 2 characters of 3, 1,000
    assert generator.count_tokens(texts) == [4, 0, 2, 334]
    passage = Passage("d", "T", "a long passage " * 50)
    [cut] = cut_passages([passage], 20, generator.count_tokens)
    assert len(cut.text) <= 20 * 3 and generator.context is None
    assert [path for path, _ in server.asked] == ["/tokenize"], "once, and no completion"


def test_the_context_is_what_the_server_lists(server, generator) -> None:
    listed = {"data": [{"id": "other", "max_model_len": 1}, {"id": "m", "max_model_len": 4096}]}
    models = 200, {}, json.dumps(listed).encode()
    server.answer = lambda path, body: like_vllm(path, body) if path == "/tokenize" else models
    assert generator.context == 4096


def sse(*parts: dict | str) -> Answer:
    lines = [f"data: {p if isinstance(p, str) else json.dumps(p)}\n\n" for p in parts]
    return 200, {"content-type": "text/event-stream"}, "".join(lines).encode()


def piece(text: str, finish: str | None = None) -> dict:
    return {"choices": [{"text": text, "finish_reason": finish}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}


def test_a_streamed_answer_comes_in_pieces_and_whole(server, generator) -> None:
    server.answer = lambda path, body: sse(
        piece("Pa"), piece("ris"), piece("", "length"), USAGE, "[DONE]"
    )
    events = list(generator.stream(Script({0: [("a", Request("p", 2))]})))
    assert [e.text for e in events] == ["Pa", "ris", ""]
    assert events[-1].done == Generation("Paris", 3, 2, "length")
    assert server.asked[0][1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([piece("Pa")], "ended before its usage was told"),
        ([piece("Pa"), {"error": {"message": "out of memory"}}], "the middle: .*out of memory"),
        ([piece("Pa"), {"error": {"message": "no", "code": 400}}], "in the middle"),
    ],
)
def test_a_stream_that_breaks_is_an_error(server, generator, parts, message) -> None:
    server.answer = lambda path, body: sse(*parts)
    with pytest.raises(QuarryError, match=message):
        list(generator.stream(Script({0: [("a", Request("p", 2))]})))


def torn(*parts: dict | str) -> Answer:
    """A stream whose connection is gone after these parts."""
    status, headers, content = sse(*parts)
    return status, headers | {"content-length": "99999", "connection": "close"}, content


WHOLE = (piece("Pa"), piece("ris", "length"), USAGE, "[DONE]")


def test_a_stream_that_breaks_before_its_first_token_is_asked_again(
    server, generator, pauses
) -> None:
    server.answer = in_turn(torn(), bad(503), torn(piece("")), sse(*WHOLE))
    pauses.clear()
    events = list(generator.stream(Script({0: [("a", Request("p", 2))]})))
    assert [e.text for e in events] == ["Pa", "ris", ""]
    assert events[-1].done == Generation("Paris", 3, 2, "length")
    assert pauses == [0.0, 0.5, 1.0, 2.0], "one policy for all that fails"
    server.answer = in_turn(torn())
    with pytest.raises(QuarryError, match=r"no answer in 5 tries; at last RemoteProtocolError"):
        list(generator.stream(Script({0: [("a", Request("p", 2))]})))


def test_a_stream_that_breaks_after_its_first_token_is_an_error_at_once(server, generator) -> None:
    server.answer = in_turn(torn(piece("Pa")), sse(*WHOLE))
    heard = []
    with pytest.raises(QuarryError, match="broke off in the middle of a text"):
        for event in generator.stream(Script({0: [("a", Request("p", 2))]})):
            heard.append(event.text)
    assert len(server.asked) == 1 and heard == ["Pa"]


@pytest.mark.parametrize(
    "refusal", [bad(400, "too long"), sse({"error": {"message": "too long", "code": 400}})]
)
def test_a_refused_request_ends_alone(server, generator, refusal) -> None:
    server.answer = lambda path, body: refusal if body["prompt"] == "long" else sse(*WHOLE)
    asked = [(name, Request(name, 2)) for name in ("a", "long", "b")]
    done = {e.request_id: e.done for e in generator.stream(Script({0: asked})) if e.done}
    assert done["a"] == done["b"] == Generation("Paris", 3, 2, "length")
    assert isinstance(done["long"], Refused) and "too long" in str(done["long"])
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [401, 404])
def test_what_concerns_every_request_stops_the_stream(server, generator, status) -> None:
    server.answer = lambda path, body: bad(status, "no such key or model")
    with pytest.raises(QuarryError, match=f"refused a request. HTTP {status}") as e:
        list(generator.stream(Script({0: [("a", Request("p", 2))]})))
    assert not isinstance(e.value, Refused)


@pytest.mark.parametrize("form", ["LLM", "Choice"])
def test_a_prompt_that_the_server_refuses_is_one_questions_error(server, generator, form) -> None:
    """Told by the server alone: it lists no context."""

    def answer(path: str, body: dict) -> Answer:
        if path == "/v1/models":
            return 200, {}, b'{"data": []}'
        if path != "/tokenize" and len(body["prompt"]) > 60:
            return bad(400, "prompt exceeds the context")
        return sse(*WHOLE) if body.get("stream") else like_vllm(path, body)

    def ask(question: Question):
        if form == "LLM":
            return Outcome((yield LLM(Request(question.text, 2))).text)
        options = ["a", "bc"]
        return Outcome(options[(yield Choice(question.text, options))])

    server.answer = answer
    questions = [Question(f"q{i}", "x" * (80 if i == 3 else 9 + i)) for i in range(6)]
    loop = run_loop(ask, questions, Tools(generator))
    errors = {a.qid: a.error for a in loop.answered if a.error}
    assert list(errors) == ["q3"]
    assert errors["q3"].startswith("Refused: ") and "exceeds the context" in errors["q3"]
    right = "Paris" if form == "LLM" else "a"
    assert [a.outcome.answer for a in loop.answered if not a.error] == [right] * 5


LISTS = {"tokens": ["Pa", "ris", "!"], "token_logprobs": [-0.1, -2.0, -0.2], "text_offset": [0]}
RECORDS = {"content": [
    {"token": "Pa", "bytes": [80, 97], "logprob": -0.1, "id": 1},
    {"token": "ris", "bytes": None, "logprob": -2.0, "id": 2},
    {"token": "!", "logprob": -0.2, "id": 3},
]}  # fmt: skip


@pytest.mark.parametrize("logprobs", [LISTS, RECORDS], ids=["openai", "llama.cpp"])
def test_doubts_come_from_either_form_of_log_probabilities(server, generator, logprobs) -> None:
    server.answer = lambda path, body: good("Paris!", logprobs=logprobs)
    request = Request("p", 4, doubt_below=(0.5, 0.85, 0.01, 1.0))
    expected = (((2, 5),), ((2, 6),), (), ((0, 6),))  # exp(-0.1) is 0.905, exp(-0.2) is 0.819
    assert generator.generate([request])[0].doubts == expected
    assert server.asked[0][1]["logprobs"] == 1
    generator.generate([Request("p", 4)])
    assert "logprobs" not in server.asked[1][1]


def test_doubts_of_a_streamed_text_span_its_pieces(server, generator) -> None:
    """The mountain has three bytes, a token each; what stands behind a stop string is cut."""
    tokens = [
        {"token": "\ufffd", "bytes": [b], "logprob": -2.0 * (i == 1)}
        for i, b in enumerate("山".encode())
    ]  # fmt: skip
    parts = [
        {"choices": [{"text": "", "finish_reason": None, "logprobs": {"content": tokens[:2]}}]},
        {"choices": [{"text": "山a", "finish_reason": None, "logprobs": {"content": [
            tokens[2], {"token": "a", "logprob": -0.01}]}}]},
        {"choices": [{"text": "", "finish_reason": "stop", "logprobs": {"content": [
            {"token": "\n", "logprob": -3.0}]}}]},
    ]  # fmt: skip
    server.answer = lambda path, body: sse(*parts, USAGE, "[DONE]")
    asked = Request("p", 9, ("\n",), doubt_below=(0.5,))
    events = list(generator.stream(Script({0: [("a", asked)]})))
    assert events[-1].done == Generation("山a", 3, 2, "stop", (((0, 1),),))


def test_a_server_that_tells_no_probabilities_cannot_be_asked_for_doubts(server, generator) -> None:
    with pytest.raises(QuarryError, match="tells no log-probabilities of what it writes"):
        generator.generate([Request("p", 4, doubt_below=(0.5,))])
    server.answer = lambda path, body: good("")
    assert generator.generate([Request("p", 4, doubt_below=(0.5,))])[0].doubts == ((),)


def test_a_stream_that_lives_on_forgets_the_requests_that_ended(server, generator) -> None:
    """Done, refused and cancelled: what it holds of them is gone with their last event."""

    def answer(path: str, body: dict) -> Answer:
        if path == "/tokenize":
            return like_vllm(path, body)
        if body["prompt"] == "b":
            cancelled.wait(60)
        return bad(400, "too long") if body["prompt"] == "long" else sse(*WHOLE)

    server.answer, cancelled = answer, threading.Event()
    asked = {0: [("a", Request("a", 2)), ("long", Request("long", 2)), ("b", Request("b", 2))]}
    stream = generator.stream(Script(asked, {1: ["b"]}))
    ended = {}
    for event in stream:
        if event.done:
            ended[event.request_id] = event.done
        if event.request_id == "b":
            cancelled.set()
        held = stream.gi_frame.f_locals
        assert not ended.keys() & (held["asked"].keys() | held["texts"].keys())
    assert ended.keys() == {"a", "long", "b"} and ended["b"].finish == "cancelled"
