"""Triples as text: written, read back, matched, asked for. The numbers are the card's."""

import pytest

from stages.answers import normalise
from stages.chains import best_match, chain_query, parse_triples, triple_text

SAID = "<A; r; B>\n1. <C; s; D, E> text <head entity; relation; tail entity> < F ; t > <unclosed; x"
POOL = ["<Southaven; state; Mississippi>", "<Southaven; population; 48,982 as of 2010>"]


def test_triples_are_read_without_the_echo_and_the_unclosed_one() -> None:
    found = parse_triples(SAID)
    assert [t.text for t in found] == ["<A; r; B>", "<C; s; D, E>", "<F ; t>"]
    assert [t.is_sound for t in found] == [True, True, False]
    assert found[1].fields == ("C", "s", "D, E") and found[2].fields == ("F", "t")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("<a; b; c; d>", ("a", "b", "c; d")),
        ("< Аида ;композитор;  Верди>", ("Аида", "композитор", "Верди")),
        ("<東京; 首都; 日本>", ("東京", "首都", "日本")),
    ],
)
def test_fields_are_a_best_effort(text, fields) -> None:
    (one,) = parse_triples(f"so {text}.")
    assert one.fields == fields and one.is_sound


@pytest.mark.parametrize(
    "text",
    ["", "no triple", "<>", "< >", "a < b; c; d", "a; b; c>", "<a;\nb; c>",
     "<Subject; relation; object>", "<head; relation; tail>", "<Head Entity;relation;Tail Entity>"],
)  # fmt: skip
def test_there_is_no_triple_in(text) -> None:
    assert parse_triples(text) == []


def test_an_empty_field_is_malformed() -> None:
    (one,) = parse_triples("<a; ; c>")
    assert one.text == "<a; ; c>" and not one.is_sound


def test_what_is_written_is_read_back() -> None:
    text = triple_text("Giuseppe Verdi", "was born in", "Le Roncole")
    assert text == "<Giuseppe Verdi; was born in; Le Roncole>"
    assert parse_triples(text)[0].text == text


def test_a_triple_matches_by_token_f1() -> None:
    """5 and 6 tokens, 4 of them shared; and 3 with 6, of which 2."""
    assert normalise(POOL[1]) == "southaven population 48982 as of 2010"
    assert best_match("<Southaven; population; 48,982 in 2010>", POOL) == (1, 2 * 4 / (5 + 6))
    assert best_match("<Southaven; population; 54,648>", POOL[1:]) == (0, 2 * 2 / (3 + 6))


def test_of_equal_matches_the_first_counts() -> None:
    assert best_match("<p q>", ["x", "q r", "p s"]) == (1, 0.5)
    assert best_match("x", []) == (-1, 0.0)


def test_the_query_holds_question_and_chain_in_one_form() -> None:
    assert chain_query("who?", []) == "who?"
    assert chain_query("who?", ["<a; r; b>"]) == "who?\nknowledge triples: <a; r; b>."
    two = chain_query("who?", ["<a; r; b>", "<b; s; c>"])
    assert two == "who?\nknowledge triples: <a; r; b>. <b; s; c>."
