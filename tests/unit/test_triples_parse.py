"""The rules, one construction at a time, on real parses."""

from pathlib import Path

import pytest
from strategies import passages_table as passages

from stages.models import package_path
from stages.records import RecordStore
from stages.triples import parse
from stages.triples.found import Found
from stages.triples.parse import Params, extract, load_parser, read_parse

VALUES = Params(extractor="parse", corpus="c", model="none")


@pytest.fixture(scope="module")
def nlp():
    return load_parser(package_path(parse.PACKAGE))


@pytest.fixture
def facts(nlp):
    """The facts of a text as "subject | relation | object"."""

    def read(text: str, title: str = "") -> list[str]:
        return [" | ".join(t) for t in read_parse(nlp(text), title=title, text=text).triples]

    return read


def test_a_verb_ties_its_subject_to_its_objects(facts) -> None:
    assert facts("Gustave Eiffel's company designed the Eiffel Tower in 1887.") == [
        "Gustave Eiffel's company | designed | Eiffel Tower",
        "Gustave Eiffel's company | designed Eiffel Tower in | 1887",
    ]


def test_the_example_of_the_docstring(facts) -> None:
    text = "Marie Curie, the physicist, was born in Warsaw and won the Nobel Prize in 1903."
    assert facts(text) == [
        "Marie Curie | is | physicist",
        "Marie Curie | was born in | Warsaw",
        "Marie Curie | won | Nobel Prize",
        "Marie Curie | won Nobel Prize in | 1903",
    ]


def test_a_passive_names_its_agent_and_a_whole_date(facts) -> None:
    assert facts("The tower was designed by Gustave Eiffel on May 4, 1887.") == [
        "tower | was designed by | Gustave Eiffel",
        "tower | was designed on | May 4, 1887",
    ]


def test_conjunctions_multiply_out(facts) -> None:
    assert facts("Pierre Curie and Marie Curie discovered polonium and radium.") == [
        "Pierre Curie | discovered | polonium",
        "Pierre Curie | discovered | radium",
        "Marie Curie | discovered | polonium",
        "Marie Curie | discovered | radium",
    ]


def test_a_genitive_subject_of_a_copula_is_a_property(facts) -> None:
    assert facts("The batting hand of Pat Burrell is Right.") == [
        "Pat Burrell | batting hand | Right"
    ]
    assert facts("Germany's capital is Berlin.") == ["Germany | capital | Berlin"]


def test_a_complement_keeps_its_preposition(facts) -> None:
    assert facts("Paris is the capital of France.") == [
        "Paris | is | capital of France",
        "Paris | is capital of | France",
    ]


def test_an_apposition_says_is_but_a_place_after_a_place_does_not(facts) -> None:
    assert "Bach | is | composer" in facts("Bach, the composer, moved to Leipzig, Germany.")
    assert not any("Germany" in fact for fact in facts("Bach moved to Leipzig, Germany."))
    assert "Obama | wife | Michelle" in facts("Obama's wife Michelle wrote a book.")


def test_clauses_are_about_what_their_noun_describes(facts) -> None:
    assert facts("The film, which was directed by Nolan, stars Leonardo DiCaprio.") == [
        "film | was directed by | Nolan",
        "film | stars | Leonardo DiCaprio",
    ]
    assert facts("Almac is a company founded in 1984.") == [
        "Almac | is | company",
        "Almac | founded in | 1984",
    ]


def test_negation_and_chained_verbs_belong_to_the_relation(facts) -> None:
    assert facts("Paris is not famous for cheese.")[-1] == "Paris | is not famous for | cheese"
    assert facts("Anna wanted to become an actor.") == ["Anna | wanted to become | actor"]


def test_a_pronoun_that_opens_a_sentence_is_the_title_and_others_drop_the_fact(facts, nlp) -> None:
    text = "She was raised in Warsaw. Her father was a teacher. In 1891 she left Poland."
    assert facts(text, "Marie Curie") == [
        "Marie Curie | was raised in | Warsaw",
        "Marie Curie | father | teacher",
    ]
    found = read_parse(nlp(text), title="", text=text)
    assert [t for t in found.triples if "she" in t.subj.lower()] == []
    assert found.rejected["pronoun"] >= 3


def test_text_that_is_not_english_and_no_text_give_no_crash(facts) -> None:
    assert facts("") == []
    assert isinstance(facts("東京は日本の首都です。 القاهرة هي عاصمة مصر."), list)


def test_the_words_of_the_title_are_one_name(facts) -> None:
    assert facts("A Man Without Love was a song of 1966.", "A Man Without Love")[0] == (
        "A Man Without Love | was | song of 1966"
    )
    title = "Harry Potter and the Order of the Phoenix (novel)"
    assert facts("The author of Harry Potter and the Order of the Phoenix is Rowling.", title) == [
        "Harry Potter and the Order of the Phoenix | author | Rowling"
    ]


def test_a_property_of_a_property_and_of_a_clause_have_an_owner(facts) -> None:
    assert facts("The country of birth of Bjørnson is Norway.") == [
        "Bjørnson | country of birth | Norway"
    ]
    assert facts("The state in which Thomas Jefferson was born is Virginia.") == [
        "Thomas Jefferson | state was born | Virginia"
    ]


def test_dates_and_measures_are_whole_objects(facts) -> None:
    assert facts("The publication date of Emma was 23 December 1815.") == [
        "Emma | publication date | 23 December 1815"
    ]
    assert facts("Samuel Alito is 73 years old.") == ["Samuel Alito | is | 73 years old"]


def test_a_sentence_like_a_table_is_left_out_and_counted(nlp) -> None:
    text = "A" + ", B" * parse.MAX_WORDS + " and C met D."
    found = read_parse(nlp(text), title="", text=text)
    assert found == Found([], {"long_sentence": 1})


def test_a_long_run_of_signs_costs_no_time(tmp_path: Path) -> None:
    text = f"Paris is in France. {'=' * 100_000} Rome is in Italy."  # 20 minutes if it were read
    with RecordStore(tmp_path) as store:
        (found,) = extract(passages(text), VALUES, model=None, store=store)
    assert "Paris" in [t.subj for t in found.triples]


def test_a_text_beyond_the_limit_is_cut_and_counted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parse, "MAX_CHARS", 40)
    text = "Paris is in France. Berlin is in Germany. Rome is in Italy."
    with RecordStore(tmp_path) as store:
        (found,) = extract(passages(text), VALUES, model=None, store=store)
    assert [t.obj for t in found.triples] == ["France", "Germany"]
    assert found.rejected == {"text_cut": 1}


def test_a_text_is_parsed_once_and_what_it_gave_does_not_depend_on_its_batch(tmp_path) -> None:
    texts = ["Paris is in France.", "Rome has two airports.", "Bonn lies on the Rhine."] * 2
    few, all_ = passages(texts[1]), passages(*texts)
    with RecordStore(tmp_path / "alone") as store:
        alone = extract(few, VALUES, model=None, store=store)
    with RecordStore(tmp_path / "all") as store:
        found = extract(all_, VALUES, model=None, store=store)
        assert (store.hits, store.misses) == (0, len(texts))  # one per text_hash
        assert extract(all_, VALUES, model=None, store=store) == found
        assert store.hits == len(texts)
    assert found[1] == alone[0]


def test_nothing_new_never_loads_the_parser(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parse, "load_parser", None)
    with RecordStore(tmp_path) as store:
        assert extract(passages(), VALUES, model=None, store=store) == []
