"""The prompts of the loops, as the model sees them, and what is left out of too long ones."""

import pytest

from stages import prompts
from stages.prompts import NO_YES, fit_passages, rag_prompt, reason_prompt
from stages.types import Passage

STEPS = [("Who composed\nAida?", "Giuseppe Verdi"), ("Where was he born?", "")]
SHORT = [Passage(f"d{i}#0", f"T{i}", "two words") for i in range(4)]


def last_block(prompt: str) -> str:
    """What stands after the demonstrations."""
    return prompt.rpartition("\n\n")[2]


@pytest.mark.parametrize(
    ("prompt", "block", "follows"),
    [
        (prompts.hypothesis_prompt("who {}\n%s?"), "Question: who {} %s?\nPassage:", " A violin"),
        (prompts.subquestions_prompt("who?"), "Question: who?\nSub-questions:", " Who composed"),
        (prompts.step_prompt("who?", []), "Question: who?\nNext step:", " In which country was"),
        (
            prompts.step_prompt("who?", STEPS),
            "Question: who?\nStep: Who composed Aida? Giuseppe Verdi\nStep: Where was he born?\n"
            "Next step:",
            " In which country was",
        ),
        (
            prompts.enough_prompt("who?", STEPS[:1]),
            "Question: who?\nStep: Who composed Aida? Giuseppe Verdi\nAll steps done:",
            NO_YES[0],
        ),
        (prompts.look_up_prompt("who?"), "Question: who?\nNeeds a search:", NO_YES[1]),
        (
            prompts.span_question_prompt("He was\nborn.", "He"),
            "Text: He was born.\nAnswer: He\nQuestion:",
            " How many strings",
        ),
        (reason_prompt("who?", []), "Question: who?\nAnswer:", " A violin has four strings"),
        (reason_prompt("who?", [], "He\nwas."), "Question: who?\nAnswer: He was.", " A violin has"),
        (
            reason_prompt("who?", SHORT[:2]),
            "Passage: T1. two words\nPassage: T0. two words\nQuestion: who?\nAnswer:",
            " A violin has four strings",
        ),
    ],
)  # fmt: skip
def test_two_demonstrations_and_then_what_is_asked(prompt, block, follows) -> None:
    """``follows`` is what the last demonstration has where the model is to go on."""
    first, second, asked = prompt.split("\n\n")
    assert asked == last_block(prompt) == block
    label = block.splitlines()[-1].partition(":")[0]
    assert f"\n{label}:{follows}" in second and f"\n{label}: " in first
    assert not prompt.endswith((" ", "\n")), "tokens of words begin with their blank"


def test_both_answers_of_a_decision_are_shown() -> None:
    for prompt in (prompts.enough_prompt("q", STEPS), prompts.look_up_prompt("q")):
        ends = [block.rpartition(":")[2] for block in prompt.split("\n\n")]
        assert sorted(ends[:2]) == sorted(NO_YES) and ends[2] == ""


def test_passages_are_left_out_from_the_end_and_nothing_else_is() -> None:
    def words(texts: list[str]) -> list[int]:
        return [len(t.split()) for t in texts]

    def write(shown: list[Passage]) -> str:
        return rag_prompt("a question of six words here", shown)

    for n in (1, 2, 4):
        room = words([write(SHORT[:n])])[0]
        assert fit_passages(SHORT, room, words, write) == SHORT[:n]
    assert fit_passages(SHORT, words([write(SHORT[:3])])[0] - 1, words, write) == SHORT[:2]
    assert fit_passages(SHORT, 1, words, write) == fit_passages([], 1, words, write) == []
