"""A model's lines are read strictly; the model is asked once per text."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError
from strategies import passages_table as passages

from stages.errors import QuarryError, Refused
from stages.models import write_training
from stages.records import RecordStore
from stages.triples import llm
from stages.triples.found import Found, Triple
from stages.triples.llm import Params, check_malformed, extract, read_lines, write_prompt
from stages.types import Generation, Request

TITLE, TEXT = (
    "Pat Burrell",
    "The batting hand of Pat Burrell is Right. Pat Burrell was born in 1976.",
)


def read(text: str, finish: str = "stop") -> Found:
    return read_lines(Generation(text, 100, 20, finish), title=TITLE, text=TEXT)


def test_three_fields_and_nothing_else_make_a_fact() -> None:
    found = read(
        "Pat Burrell | batting hand | Right\n"
        "\n"
        "Pat Burrell | born in 1976\n"
        "He bats right.\n"
        "Pat Burrell | born | in | 1976\n"
        "Pat Burrell |  | Right\n"
        "  Pat   Burrell|born in|1976  \n"
        "Pat Burrell | team | Phillies\n"
        "Barry Bonds | born in | 1976\n"
    )
    assert found.triples == [
        Triple("Pat Burrell", "batting hand", "Right"),
        Triple("Pat Burrell", "born in", "1976"),
    ]
    assert found.rejected == {
        "too_few_fields": 1,
        "no_separator": 1,
        "too_many_fields": 1,
        "empty_field": 1,
        "object_not_in_text": 1,
        "subject_not_in_text": 1,
    }


def test_the_raw_text_is_kept_whatever_it_is() -> None:
    assert read("I am sorry |").raw == "I am sorry |"


def test_a_line_cut_by_the_limit_does_not_count_though_it_looks_whole() -> None:
    cut = read("Pat Burrell | batting hand | Right\nPat Burrell | born in | 1976", "length")
    assert cut.triples == [Triple("Pat Burrell", "batting hand", "Right")]
    assert cut.rejected == {"truncated": 1}
    assert len(read("Pat Burrell | born in | 1976", "eos").triples) == 1
    assert len(read("Pat Burrell | born in | 1976\n", "length").triples) == 1


def test_no_well_formed_line_is_a_malformed_passage_and_an_ungrounded_one_is_not() -> None:
    assert read("Right.").rejected == {"no_separator": 1, "malformed_passage": 1}
    assert read("").rejected == {"malformed_passage": 1}
    assert read("a | b | c").rejected == {"subject_not_in_text": 1}


def test_too_many_malformed_passages_stop_the_stage() -> None:
    good, bad = read("a | b | c"), read("nothing of use")
    check_malformed([good, bad], 0.5)
    check_malformed([], 0.0)
    with pytest.raises(QuarryError) as e:
        check_malformed([bad, good, bad], 0.5)
    assert str(e.value) == (
        "triples: 2 of 3 passages came back without one line 'subject | relation | object' "
        "(max_malformed 0.5); the first such text: 'nothing of use'. "
        "Use a stronger model, or raise max_malformed."
    )


def test_the_prompt_shows_the_demonstration_and_the_first_words_of_the_passage() -> None:
    prompt = write_prompt("{T}\nx", "one\n\ntwo three {four}", words=3)
    assert prompt.endswith("\n\nTitle: {T} x\nPassage: one two three\nFacts:\n")
    assert prompt.count("\n\nTitle:") == 2


def test_the_demonstration_follows_the_rules_that_it_teaches() -> None:
    shown = llm.PROMPT.split("\n\n")[1]
    head, facts = shown.split("Facts:\n")
    _, title, passage = head.replace("\nPassage:", "Title:").split("Title:")
    found = read_lines(Generation(facts, 0, 0, "stop"), title=title, text=passage)
    assert len(found.triples) == len(facts.splitlines()) == 4
    assert found.rejected == {}


class Scripted:
    """Stands for the generator where only the plumbing is tested: answers from the prompt."""

    fingerprint = "scripted"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.prompts += [r.prompt for r in requests]
        texts = [r.prompt.rsplit("Passage: ")[-1].split("\n")[0] for r in requests]
        return [Generation(f"{t} | is | {t} too", 9, 9, "stop") for t in texts]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    write_training(folder, "generator", recipe="test")
    return folder


@pytest.fixture
def scripted(monkeypatch) -> Scripted:
    generator = Scripted()
    monkeypatch.setattr(llm, "open_generator", lambda folder, threads: generator)
    return generator


def values(**changed) -> Params:
    return Params(**{"extractor": "llm", "corpus": "c", "model": "m", **changed})


def test_the_model_is_asked_once_per_text_and_never_again(tmp_path, model, scripted) -> None:
    first, grown = passages("cat", "dog"), passages("cat", "dog", "emu")
    with RecordStore(tmp_path / "rs") as store:
        found = extract(first, values(), model=model, store=store)
        assert [one.raw for one in found] == ["cat | is | cat too", "dog | is | dog too"]
    with RecordStore(tmp_path / "rs") as store:
        assert extract(grown, values(), model=model, store=store)[:2] == found
    assert len(scripted.prompts) == 3


def test_other_values_or_another_model_ask_again(tmp_path, model, scripted) -> None:
    with RecordStore(tmp_path / "rs") as store:
        for changed in ({}, {"max_tokens": 7}, {"passage_words": 7}, {"threads": 2}):
            extract(passages("cat"), values(**changed), model=model, store=store)
        assert len(scripted.prompts) == 3  # threads do not decide a greedy text
        (model / "model.safetensors").write_text("tuned")
        write_training(model, "generator", recipe="test")
        extract(passages("cat"), values(), model=model, store=store)
    assert len(scripted.prompts) == 4


def test_an_empty_corpus_never_opens_the_model(tmp_path, model, monkeypatch) -> None:
    monkeypatch.setattr(llm, "open_generator", None)
    with RecordStore(tmp_path / "rs") as store:
        assert extract(passages(), values(max_malformed=0), model=model, store=store) == []


@pytest.mark.parametrize(
    "changed", [{"model": "none"}, {"limit": 0}, {"max_tokens": 0}, {"max_malformed": 1.5}]
)
def test_values_out_of_range_are_refused(changed) -> None:
    with pytest.raises(ValidationError):
        values(**changed)


class Refusing(Scripted):
    """A server that does not answer for the dog."""

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        if any("Passage: dog" in r.prompt for r in requests):
            raise Refused("prompt too long")
        return super().generate(requests)


def test_a_refused_passage_is_counted_and_asked_again_and_the_others_go_on(
    tmp_path, model, monkeypatch
) -> None:
    monkeypatch.setattr(llm, "open_generator", lambda folder, threads: generator)
    texts = passages("cat", "dog", "emu", "fox")
    with RecordStore(tmp_path / "rs") as store:
        generator = Refusing()
        first = extract(texts, values(), model=model, store=store)
        assert [one.rejected.get("refused", 0) for one in first] == [0, 1, 0, 0]
        assert [one.raw.split(" | ")[0] for one in first] == ["cat", "", "emu", "fox"]
        generator = Scripted()
        again = extract(texts, values(), model=model, store=store)
        assert len(generator.prompts) == 1, "only what was refused"
        assert [one.raw.split(" | ")[0] for one in again] == ["cat", "dog", "emu", "fox"]
        generator = Refusing()
        with pytest.raises(QuarryError, match="1 of 1 passages came back without one line"):
            extract(passages("dog house"), values(max_malformed=0.0), model=model, store=store)
