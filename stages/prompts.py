"""The prompts. The reader's: what serving asks and what preference training scores is one text.
And those of the loop strategies, one function each.

Two demonstrations, plain text, an answer that ends with its line. On SmolLM2-135M this form
beats the chat template by far. Everything up to the first passage (or, without passages, up
to the question) is the same for all questions, so a generator can reuse its keys and values.

The best passage comes last, beside the question: a small reader believes what it read last (the
study ``fanoutqa-leaf-dev`` compares the two orders, docs/studies.md).
"""

from collections.abc import Callable, Sequence
from typing import Literal

from stages.types import Passage

# Part of every key that a text made from the reader's prompt has. The effects of a loop need none:
# their keys hold the prompt itself.
PROMPT_VERSION = "rag-2"
Order = Literal["best_last", "best_first"]  # of the passages in a prompt
CountTokens = Callable[[list[str]], list[int]]
STOP = ("\n",)  # the answer is one line
NO_YES = (" no", " yes")  # a decision's options; where they are as likely it is "no"
LONGEST_WORD = 30  # characters; a longer run without a space is no word (Chinese, a URL)

# General knowledge, written for this file: in no corpus that we measure on.
_DEMONSTRATIONS = (
    (
        "Which city is the capital of Australia?",
        Passage("", "Canberra", "Canberra was chosen in 1908 as the site of Australia's capital."),
        "Canberra",
    ),
    (
        "How many strings does a standard violin have?",
        Passage("", "Violin", "A violin has four strings, usually tuned to G, D, A and E."),
        "four",
    ),
)
_REASONS = (
    "Canberra was chosen in 1908 as the site of Australia's capital. So the answer is Canberra.",
    "A violin has four strings, tuned to G, D, A and E. So the answer is four.",
)
# Two questions of two steps each: a comparison and a bridge.
_DECOMPOSED = (
    (
        "Which is longer, the Rhine or the Seine?",
        ("How long is the Rhine?", "1,230 km"),
        ("How long is the Seine?", "775 km"),
    ),
    (
        "In which country was the composer of Aida born?",
        ("Who composed Aida?", "Giuseppe Verdi"),
        ("In which country was Giuseppe Verdi born?", "Italy"),
    ),
)


def rag_prompt(question: str, passages: Sequence[Passage], order: Order = "best_last") -> str:
    """The prompt of a question; what follows is " answer\\n".

    Passages are given best first. Without passages the demonstrations have none either.
    """
    return _read_prompt(question, passages, order, [answer for *_, answer in _DEMONSTRATIONS])


def reason_prompt(
    question: str, passages: Sequence[Passage], draft: str = "", order: Order = "best_last"
) -> str:
    """The prompt for what comes after ``draft`` in a reasoned answer: " sentence. sentence.\\n"."""
    return f"{_read_prompt(question, passages, order, _REASONS)} {_line(draft)}".rstrip()


def _read_prompt(
    question: str, passages: Sequence[Passage], order: Order, answers: Sequence[str]
) -> str:
    shown = passages if order == "best_first" else passages[::-1]
    parts = [
        _block(demo, [passage] if passages else []) + f" {answer}"
        for (demo, passage, _), answer in zip(_DEMONSTRATIONS, answers, strict=True)
    ]
    return "\n\n".join([*parts, _block(question, shown)])


def _block(question: str, passages: Sequence[Passage]) -> str:
    lines = [f"Passage: {_line(p.title)}. {_line(p.text)}" for p in passages]
    return "\n".join([*lines, f"Question: {_line(question)}", "Answer:"])


def hypothesis_prompt(question: str) -> str:
    """The prompt for a passage that would answer the question; what follows is " passage\\n"."""
    shots = [(demo, passage.text) for demo, passage, _ in _DEMONSTRATIONS]
    return _shots("Question: {}\nPassage: {}", shots, _line(question))


def subquestions_prompt(question: str) -> str:
    """The prompt for the questions behind a question; what follows is " Who? Where?\\n"."""
    shots = [(whole, " ".join(ask for ask, _ in steps)) for whole, *steps in _DECOMPOSED]
    return _shots("Question: {}\nSub-questions: {}", shots, _line(question))


def step_prompt(question: str, steps: Sequence[tuple[str, str]]) -> str:
    """The prompt for the next step after some (question, answer); what follows is " Who?\\n"."""
    (first, *one), (second, *two) = _DECOMPOSED
    shots = [(first, "", one[0][0]), (second, _steps(two[:1]), two[1][0])]
    return _shots("Question: {}{}\nNext step: {}", shots, _line(question), _steps(steps))


def enough_prompt(question: str, steps: Sequence[tuple[str, str]]) -> str:
    """The prompt for the choice whether these steps answer the question; ``NO_YES`` follows."""
    (first, *one), (second, *two) = _DECOMPOSED
    shots = [(first, _steps(one), "yes"), (second, _steps(two[:1]), "no")]
    return _shots("Question: {}{}\nAll steps done: {}", shots, _line(question), _steps(steps))


def _steps(steps: Sequence[tuple[str, str]]) -> str:
    return "".join(f"\nStep: {_line(ask)} {_line(answer)}".rstrip() for ask, answer in steps)


def look_up_prompt(question: str) -> str:
    """The prompt for the choice whether a question needs retrieval; ``NO_YES`` follows.

    Of twelve forms tried, the one in which SmolLM2-135M tells 16 dev questions of fanoutqa-leaf
    from 8 trivial ones best at delta = 0.2: 13 and 3 are looked up.
    """
    shots = [("What is two plus two?", "no"), ("How many people live in Turin?", "yes")]
    return _shots("Question: {}\nNeeds a search: {}", shots, _line(question))


def span_question_prompt(text: str, span: str) -> str:
    """The prompt for a question whose answer is ``span`` of ``text``; " Who?\\n" follows."""
    shots = [
        ("Canberra was chosen in 1908 as the capital.", "1908", "When was Canberra chosen?"),
        ("A violin has four strings.", "four", "How many strings does a violin have?"),
    ]
    return _shots("Text: {}\nAnswer: {}\nQuestion: {}", shots, _line(text), _line(span))


def _shots(form: str, shots: Sequence[Sequence[str]], *given: str) -> str:
    """The filled forms, and then the form with what is given, up to its last blank."""
    asked = form[: form.rindex(" {}")].format(*given)
    return "\n\n".join([*(form.format(*shot) for shot in shots), asked])


def _line(text: str) -> str:
    """``text`` on one line: a line break would end an answer early."""
    return " ".join(text.split())


def fit_passages(
    passages: Sequence[Passage],
    tokens: int,
    count_tokens: CountTokens,
    write_prompt: Callable[[list[Passage]], str],
) -> list[Passage]:
    """The first of the passages, as many as leave the prompt within ``tokens``.

    Nothing else of the prompt is cut: with no passages left it may still be too long.
    """
    shown = list(passages)
    while shown and count_tokens([write_prompt(shown)])[0] > tokens:
        shown.pop()
    return shown


def cut_passages(
    passages: Sequence[Passage], tokens: int, count_tokens: CountTokens
) -> list[Passage]:
    """Passages whose text has at most ``tokens`` tokens by ``count_tokens``, cut at a word's end.

    Bisection over characters, all passages at once: log2(longest text) calls. Titles stay whole.
    """
    texts = [_line(p.text) for p in passages]
    fits = [0] * len(texts)  # characters that are known to fit
    over = [len(t) + 1 for t in texts]  # characters that are known to be too many
    while unknown := [i for i in range(len(texts)) if over[i] - fits[i] > 1]:
        # The whole text is tried first: most passages fit.
        tried = [
            len(texts[i]) if over[i] > len(texts[i]) else (fits[i] + over[i]) // 2 for i in unknown
        ]
        counts = count_tokens([texts[i][:n] for i, n in zip(unknown, tried, strict=True)])
        for i, n, count in zip(unknown, tried, counts, strict=True):
            (fits if count <= tokens else over)[i] = n
    cut = [_whole_words(text, at) for text, at in zip(texts, fits, strict=True)]
    return [p._replace(text=text) for p, text in zip(passages, cut, strict=True)]


def _whole_words(text: str, at: int) -> str:
    if at == len(text) or text[at].isspace():
        return text[:at].rstrip()
    space = text.rfind(" ", max(0, at - LONGEST_WORD), at)
    return text[: space if space >= 0 else at].rstrip()
