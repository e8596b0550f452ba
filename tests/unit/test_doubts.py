"""Where a generated text is in doubt: what the generators say, and what the log keeps of it."""

import json
from math import exp

import pytest
from language_models import tiny_lm

from stages import lm
from stages.effects import LLM, read_result, write_request, write_result
from stages.lm import LocalGenerator, open_generator
from stages.types import Generation, Request

THRESHOLD = 0.3


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> LocalGenerator:
    return open_generator(tiny_lm(tmp_path_factory.mktemp("tiny"), context=256))


def probabilities(generator: LocalGenerator, prompt: str, text: str) -> list[float]:
    """p of every character (a token each) after the prompt and those before it."""
    before = [prompt + text[:i] for i in range(len(text))]
    return [exp(scored.total) for scored in generator.logprobs(before, list(text))]


def runs_below(values: list[float], threshold: float) -> tuple[tuple[int, int], ...]:
    low = [i for i, p in enumerate(values) if p < threshold]
    starts = [i for i in low if i - 1 not in low]
    ends = [i + 1 for i in low if i + 1 not in low]
    return tuple(zip(starts, ends, strict=True))


def test_doubts_are_the_characters_whose_probability_is_below(generator) -> None:
    request = Request("why?", 40, doubt_below=(THRESHOLD, 0.9))
    [got] = generator.generate([request])
    values = probabilities(generator, "why?", got.text)
    assert got.doubts == (runs_below(values, THRESHOLD), runs_below(values, 0.9))
    assert 0 < len(got.doubts[0]) < len(got.text) / 2
    plain = generator.generate([Request("why?", 40)])[0]
    assert got._replace(doubts=()) == plain, "to ask changes no text"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_threshold_on_a_probability_is_decided_alike_in_any_company(
    generator, temperature
) -> None:
    """Each threshold is a probability that occurs: whichever side it falls on, it stays there."""
    sampled = Request("why?", 24, temperature=temperature, seed=5)
    [alone] = generator.generate([sampled])
    exact = tuple(probabilities(generator, "why?", alone.text))
    request = sampled._replace(doubt_below=exact)
    [expected] = generator.generate([request])
    for size in (1, 3, 12):
        company = [Request("x" * (7 * i % 60 + 1), 9 + i) for i in range(size)]
        assert generator.generate([*company, request, request])[-2:] == [expected] * 2
    generator.forget()
    assert generator.generate([request]) == [expected]


def test_near_a_threshold_a_token_is_scored_alone(generator, monkeypatch) -> None:
    """The same when every token is near: the second way of scoring agrees with the first."""
    request = Request("why? " * 9, 20, doubt_below=(THRESHOLD,))
    [far] = generator.generate([request])
    monkeypatch.setattr(lm, "NEAR", 1.0)
    before = generator.tokens
    assert generator.generate([request]) == [far]
    assert generator.tokens - before > 20 * len(request.prompt), "each token, from the beginning"


def test_nothing_is_below_0_and_everything_is_below_1(generator) -> None:
    [got] = generator.generate([Request("why?", 20, doubt_below=(0.0, 1.0, 1.5))])
    assert got.doubts == ((), ((0, len(got.text)),), ((0, len(got.text)),))
    [nothing] = generator.generate([Request("why?", 0, doubt_below=(1.0, 0.5))])
    assert nothing.doubts == ((), ())


def test_doubts_end_where_the_text_does(generator) -> None:
    whole = generator.generate([Request("hello", 40)])[0].text
    stop = whole[6:9]
    [got] = generator.generate([Request("hello", 40, stop=(stop,), doubt_below=(1.0,))])
    assert got.doubts == (((0, whole.index(stop)),),)


# -- the effect log ---------------------------------------------------------------------------


def test_a_request_without_doubts_is_written_as_it_always_was() -> None:
    assert write_request(LLM(Request("p", 4, ("\n",)))) == (
        '{"max_tokens": 4, "prompt": "p", "seed": 0, "stop": ["\\n"], "temperature": 0.0, '
        '"top_p": 1.0}'
    )
    asked = json.loads(write_request(LLM(Request("p", 4, doubt_below=(0.5,)))))
    assert asked["doubt_below"] == [0.5]


def test_an_old_log_reads_and_a_new_one_comes_back_whole() -> None:
    effect = LLM(Request("p", 4))
    old = '{"finish": "stop", "text": "x", "tokens_in": 3, "tokens_out": 1}'
    generation = Generation("x", 3, 1, "stop")
    assert read_result(effect, old) == generation and write_result(effect, generation) == old
    for doubts in (((),), (((0, 1),), ()), (((0, 1), (3, 9)),)):
        doubtful = generation._replace(doubts=doubts)
        assert read_result(effect, write_result(effect, doubtful)) == doubtful
