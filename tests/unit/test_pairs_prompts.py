"""The reader's prompt, read as text, and passages cut to a number of tokens."""

from hypothesis import given
from hypothesis import strategies as st

from stages.prompts import cut_passages, rag_prompt
from stages.types import Passage

OAK = Passage("d#0", "Oak", "Oaks grow\nslowly.")
ELM = Passage("e#0", "Elm", "Elms grow.")


def words(texts: list[str]) -> list[int]:
    return [len(t.split()) for t in texts]


def test_the_prompt_ends_with_the_best_passage_and_the_question() -> None:
    prompt = rag_prompt("Do oaks\ngrow?", [ELM, OAK])
    assert prompt.endswith(
        "\n\nPassage: Oak. Oaks grow slowly.\nPassage: Elm. Elms grow.\n"
        "Question: Do oaks grow?\nAnswer:"
    )


def test_best_first_turns_the_passages_of_the_question_round_and_nothing_else() -> None:
    last = rag_prompt("Do oaks grow?", [ELM, OAK])
    assert rag_prompt("Do oaks grow?", [OAK, ELM], "best_first") == last
    assert rag_prompt("Do oaks grow?", [ELM, OAK], "best_first") != last


def test_without_passages_neither_the_question_nor_the_demonstrations_have_one() -> None:
    assert "Passage:" not in rag_prompt("Do oaks grow?", [])


def test_two_demonstrations_show_the_form_and_are_shared_by_all_questions() -> None:
    one, two = rag_prompt("Do oaks grow?", [OAK]), rag_prompt("Do elms grow?", [ELM])
    shared = one[: one.rindex("Passage:")]
    assert two.startswith(shared)
    answers = [line for line in shared.splitlines() if line.startswith("Answer: ")]
    assert len(answers) == 2 and len({*answers}) == 2


def test_a_cut_ends_with_a_whole_word() -> None:
    cut = cut_passages([Passage("d", "T", "one two  three"), ELM], 2, lambda ts: words(ts))
    assert [p.text for p in cut] == ["one two", "Elms grow."]
    assert cut[0].title == "T" and cut[0].docid == "d"


def test_a_text_without_spaces_is_cut_between_characters() -> None:
    cut = cut_passages([Passage("d", "", "木" * 100)], 7, lambda ts: [len(t) for t in ts])
    assert cut[0].text == "木" * 7


def test_nothing_is_asked_of_no_passages_and_no_tokens_leave_no_text() -> None:
    assert cut_passages([], 5, words) == []
    assert cut_passages([OAK], 0, words)[0].text == ""


@given(st.lists(st.text(max_size=60), max_size=4), st.integers(0, 12))
def test_a_cut_fits_and_is_a_prefix_and_the_next_word_would_not_fit(
    texts: list[str], tokens: int
) -> None:
    cut = cut_passages([Passage("d", "", t) for t in texts], tokens, words)
    for passage, text in zip(cut, texts, strict=True):
        all_words = text.split()
        assert passage.text.split() == all_words[: min(tokens, len(all_words))]
