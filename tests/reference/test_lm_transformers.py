"""The local generator against transformers, one sequence at a time and without a cache."""

import random
from pathlib import Path

import pytest
import torch
from language_models import reference, smollm2, tiny_lm
from transformers import (
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from stages import lm
from stages.effects import pick
from stages.errors import QuarryError
from stages.lm import LocalGenerator, open_generator
from stages.types import Request

RNG = random.Random(5)
HEADER = "Answer in one word. Question: what is gold? Answer: metal. Question: "


def text(length: int) -> str:
    return "".join(RNG.choice("abcdefgh ?.,") for _ in range(length))


# Lengths around the chunk (24 below), the threshold for sharing (32), the cache's grain (64).
PROMPTS = [text(n) for n in (1, 2, 9, 23, 24, 25, 40, 63, 64, 65, 90, 130)]
PROMPTS += [HEADER + text(n) for n in (3, 5, 17)] + ["zürich 漢字", PROMPTS[3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def generator(folder: Path) -> LocalGenerator:
    return open_generator(folder)


@pytest.fixture(scope="module")
def one_by_one(folder: Path) -> list[str]:
    model, tokenizer = reference(folder)
    return [greedy(model, tokenizer, p, 40) for p in PROMPTS]


def greedy(model, tokenizer, prompt: str, max_tokens: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=max_tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def full_forward(model, tokenizer, prompt: str, completion: str) -> float:
    """log p(completion | prompt) from one pass over everything."""
    head = tokenizer(prompt).input_ids
    tail = tokenizer(completion, add_special_tokens=False).input_ids
    logp = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(logp[len(head) - 1 + i, t].item() for i, t in enumerate(tail))


@pytest.mark.parametrize(("rows", "prefill"), [(1, 512), (4, 24), (16, 512), (16, 24)])
def test_greedy_texts_equal_generate_one_by_one(
    generator, one_by_one, monkeypatch, rows: int, prefill: int
) -> None:
    monkeypatch.setattr(lm, "ROWS", rows)
    monkeypatch.setattr(lm, "PREFILL", prefill)
    ours = generator.generate([Request(p, 40) for p in PROMPTS])
    assert [o.text for o in ours] == one_by_one
    assert {o.finish for o in ours} == {"eos", "length"}, "the model should do both here"


def test_a_small_window_makes_requests_wait_and_changes_nothing(
    generator, one_by_one, monkeypatch
) -> None:
    monkeypatch.setattr(lm, "WINDOW", 300)
    assert [o.text for o in generator.generate([Request(p, 40) for p in PROMPTS])] == one_by_one


@pytest.mark.parametrize("prefill", [24, 512])
def test_logprobs_equal_a_full_pass_to_1e_4(folder, generator, monkeypatch, prefill: int) -> None:
    monkeypatch.setattr(lm, "PREFILL", prefill)
    model, tokenizer = reference(folder)
    completions = [text(n) for n in range(1, len(PROMPTS) + 1)]
    ours = generator.logprobs(PROMPTS, completions)
    for prompt, completion, got in zip(PROMPTS, completions, ours, strict=True):
        assert got.total == pytest.approx(
            full_forward(model, tokenizer, prompt, completion), abs=1e-4 * got.n_tokens
        )
        assert got.n_tokens == len(tokenizer(completion).input_ids)


def test_a_choice_equals_a_full_pass_for_each_option(folder, generator) -> None:
    model, tokenizer = reference(folder)
    prompts, options = [HEADER + "tea?", "b"], [[" yes", " no", " yes sir"], ["x", "yy"]]
    for prompt, named, logps in zip(
        prompts, options, generator.choose(prompts, options), strict=True
    ):
        expected = [full_forward(model, tokenizer, prompt, o) for o in named]
        assert logps == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("family", "values", "context"),
    [
        (Qwen2Config, {}, 512),
        (GPT2Config, {"n_inner": 64, "num_key_value_heads": None}, 512),  # learned positions
        (GraniteConfig, {"logits_scaling": 3.0}, 512),  # the head is not all there is to logits
        (MistralConfig, {"sliding_window": 200}, 200),
    ],
)
def test_other_families_of_models_say_what_transformers_says(
    tmp_path, family, values: dict, context: int
) -> None:
    folder = tiny_lm(tmp_path, family=family, **values)
    generator, (model, tokenizer) = open_generator(folder), reference(folder)
    ours = generator.generate([Request(p, 20) for p in PROMPTS])
    assert [o.text for o in ours] == [greedy(model, tokenizer, p, 20) for p in PROMPTS]
    assert generator.context == context, "within the window every token sees all before it"


@pytest.mark.parametrize(
    ("family", "message"),
    [(Gemma2Config, "caps its attention logits"), (MambaConfig, "does not attend as")],
)
def test_a_model_that_attends_otherwise_is_refused(tmp_path, family, message: str) -> None:
    with pytest.raises(QuarryError, match=rf"{message}.*Serve the model"):
        open_generator(tiny_lm(tmp_path, family=family)).generate([Request("a", 1)])


def test_the_real_model_says_what_transformers_says() -> None:
    folder = smollm2()
    generator = open_generator(folder)
    model, tokenizer = reference(folder)
    shots = "Q: What is the capital of France?\nA: Paris\n\n"
    shots += "Q: Who wrote Hamlet?\nA: Shakespeare\n\n"
    prompts = [
        shots + "Q: In which country is Berlin?\nA:",
        shots + "Q: How many legs has a spider?\nA:",
        "The three primary colours are",
    ]
    ours = generator.generate([Request(p, 8) for p in prompts])
    assert [o.text for o in ours] == [greedy(model, tokenizer, p, 8) for p in prompts]
    assert ours[0].text.startswith(" Germany\n")
    options = [" France", " Germany", " Italy"]
    [logps] = generator.choose(prompts[:1], [options])
    expected = [full_forward(model, tokenizer, prompts[0], o) for o in options]
    assert logps == pytest.approx(expected, abs=1e-4)
    assert pick(logps) == 1
