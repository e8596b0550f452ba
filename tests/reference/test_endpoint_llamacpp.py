"""The endpoint client against llama.cpp's server, with the real generator's file in it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from language_models import ROOT, Script, gguf, needs_xllamacpp, smollm2

from stages import endpoint
from stages.effects import pick
from stages.endpoint import EndpointGenerator
from stages.errors import QuarryError, Refused
from stages.finetune import Inputs
from stages.finetune.pretrained import Params, train
from stages.lm import open_generator
from stages.types import Request

pytestmark = needs_xllamacpp
SHOTS = "Q: What is the capital of France?\nA: Paris\n\nQ: Who wrote Hamlet?\nA: Shakespeare\n\n"
GERMANY = SHOTS + "Q: In which country is Berlin?\nA:"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen, str]]:
    command = [sys.executable, "tools/llm_server.py", "--model", str(gguf()), "--port", "0"]
    command += ["--threads", "1", "--context", "512", "--slots", "2"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def remote(server, tmp_path_factory) -> EndpointGenerator:
    folder = tmp_path_factory.mktemp("endpoint")
    source = {"base_url": server[1], "model": "local", "api_key_env": ""}
    slots = dict.fromkeys(Inputs._fields, "none")
    train(Params(recipe="pretrained", role="generator", source=source, **slots), Inputs(), folder)
    return open_generator(folder)


def test_texts_and_costs_are_those_of_the_same_model_here(remote) -> None:
    local = open_generator(smollm2())
    request = Request(GERMANY, 8, stop=("\n",))
    [there], [here] = remote.generate([request]), local.generate([request])
    assert (there.text, there.tokens_in, there.finish) == (here.text, here.tokens_in, here.finish)
    assert there.text == " Germany"
    assert remote.count_tokens([GERMANY, ""]) == local.count_tokens([GERMANY, ""])
    [cut] = remote.generate([Request(GERMANY, 3)])
    assert (cut.finish, cut.tokens_out) == ("length", 3)


def test_doubts_span_the_tokens_of_a_text_streamed_or_not(remote) -> None:
    request = Request(SHOTS + "Q: Who wrote Crime and Punishment?\nA:", 12, ("\n",))
    asked = request._replace(doubt_below=(0.0, 0.5, 1.0))
    [got] = remote.generate([asked])
    [streamed] = [e.done for e in remote.stream(Script({0: [("a", asked)]})) if e.done]
    assert got == streamed and got._replace(doubts=()) == remote.generate([request])[0]
    never, some, always = got.doubts
    assert never == () and always == ((0, len(got.text)),)
    assert all(0 <= start < end <= len(got.text) for start, end in some)


def test_a_seed_gives_one_text(remote) -> None:
    requests = [Request("My favourite food is", 8, temperature=1.0, seed=s) for s in (1, 2, 1)]
    one, two, again = remote.generate(requests)
    assert one.text == again.text != two.text


def test_choices_agree_with_the_same_model_here(remote) -> None:
    options = [[" France", " Germany", " Italy"], [" yes", " Xylophone quartz"]]
    there = remote.choose([GERMANY, "Is snow white?"], options)
    here = open_generator(smollm2()).choose([GERMANY, "Is snow white?"], options)
    assert [pick(logps) for logps in there] == [pick(logps) for logps in here] == [1, 0]
    for ours, theirs in zip(here, there, strict=True):
        assert theirs == pytest.approx(ours, abs=1.0), "4-bit products there, float32 here"


def test_a_stream_admits_and_cancels_while_others_run(remote) -> None:
    story = Request("Once upon a time", 90)
    short = Request(GERMANY, 4)
    inbox = Script({0: [("story", story), ("gone", story)], 9: [("short", short)]})
    order, done = [], {}
    for event in remote.stream(inbox):
        order.append(event.request_id)
        if event.done:
            done[event.request_id] = event.done
        if order.count("gone") == 3:
            inbox.cancel_at[inbox.looks + 1] = ["gone"]
    assert done["short"] == remote.generate([short])[0]
    assert done["gone"].finish == "cancelled"
    assert 3 <= order.count("gone") <= 5
    assert order.index("short") < len(order) - 1 - order[::-1].index("story")
    assert done["story"].tokens_out == 90


def test_a_prompt_over_the_servers_context_is_refused_with_its_words(remote) -> None:
    assert remote.context == 512
    with pytest.raises(QuarryError, match=r"refused a request.*exceeds the available context"):
        remote.generate([Request("x " * 600, 4)])
    requests = [("long", Request("x " * 600, 4)), ("short", Request(GERMANY, 4))]
    done = {e.request_id: e.done for e in remote.stream(Script({0: requests})) if e.done}
    assert isinstance(done["long"], Refused) and "exceeds the available" in str(done["long"])
    assert done["short"].text.startswith(" Germany"), "the others go on"


def test_when_the_server_has_gone_the_error_says_so(server, remote, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    server[0].terminate()
    server[0].wait()
    with pytest.raises(QuarryError, match=r"no answer in 5 tries.*Start the server"):
        remote.generate([Request("x", 1)])


def test_the_server_says_what_it_lacks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/llm_server.py", "--model", str(tmp_path / "no.gguf")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no.gguf is not there. Run make models-large" in done.stderr
