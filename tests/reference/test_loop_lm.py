"""The loop engine on the real generator: what a question gets does not depend on its neighbours."""

import random

import pytest
from language_models import smollm2

from stages.effects import LLM, Choice, Outcome, Question
from stages.lm import open_generator
from stages.loop import run_loop
from stages.prompts import STOP, rag_prompt
from stages.tools import Tools
from stages.types import Request

QUESTIONS = [
    Question(f"q{i}", text)
    for i, text in enumerate((
        "Who wrote Faust?", "Where is Lyon?", "What is the capital of Peru?",
        "Which river flows through Vienna and Budapest to the Black Sea?", "Who wrote Faust?", "",
    ))
]  # fmt: skip


@pytest.fixture(scope="module")
def generator():
    return open_generator(smollm2())


def answer_and_doubt(question):
    """Greedy, sampled and chosen, of several lengths, in a second round too."""
    prompt = rag_prompt(question.text, [])
    first, other = yield [
        LLM(Request(prompt, 8, STOP)), LLM(Request(prompt, 6, STOP, temperature=0.9, top_p=0.9)),
    ]  # fmt: skip
    sure = yield Choice(f"{prompt}{first.text}\nIs that true?", [" yes", " no"])
    if sure == 0:
        again = yield LLM(Request(f"{prompt}{other.text}. That is", 4 + len(question.text) % 3))
        return Outcome(again.text, memory=other.text)
    return Outcome(first.text, memory=other.text)


@pytest.fixture(scope="module")
def expected(generator):
    return run_loop(answer_and_doubt, QUESTIONS, Tools(generator), seed=13)


@pytest.mark.parametrize(("batch", "max_active"), [(1, 1), (4, 3), (16, 64)])
def test_texts_choices_and_costs_are_equal_for_any_batch_and_order(
    generator, expected, batch, max_active
):
    questions = random.Random(batch).sample(QUESTIONS, len(QUESTIONS))
    loop = run_loop(
        answer_and_doubt, questions, Tools(generator), seed=13, batch=batch, max_active=max_active
    )
    assert loop.answered == expected.answered and loop.effects.equals(expected.effects)
    assert all(a.error == "" for a in loop.answered)
    assert len({a.outcome.answer for a in loop.answered}) > 2


def test_a_prompt_over_the_context_fails_its_question_alone(generator):
    def read(question):
        return Outcome((yield LLM(Request(question.text * 4, 8, STOP))).text)

    endless = Question("r", "word " * generator.context)
    both = run_loop(read, [QUESTIONS[0], endless], Tools(generator))
    assert both.answered[0] == run_loop(read, QUESTIONS[:1], Tools(generator)).answered[0]
    assert f"the model's context has {generator.context}" in both.answered[1].error
