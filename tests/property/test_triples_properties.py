"""Whatever the text: nothing invented, nothing twice, and a passage's facts are its own."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import awkward, passages

from stages.models import package_path
from stages.triples import parse
from stages.triples.found import Found, Triple, fold, keep_grounded
from stages.triples.llm import read_lines
from stages.triples.parse import load_parser, read_parse
from stages.types import Generation


@pytest.fixture(scope="module")
def nlp():
    return load_parser(package_path(parse.PACKAGE))


def assert_grounded(found: Found, title: str, text: str) -> None:
    places = fold(text), fold(title)
    for triple in found.triples:
        assert all(part == " ".join(part.split()) and part for part in triple)
        for part in (triple.subj, triple.obj):
            assert any(fold(part) in place for place in places), (triple, title, text)
    assert len({tuple(map(fold, t)) for t in found.triples}) == len(found.triples)
    assert Found.from_bytes(found.to_bytes()) == found


@settings(max_examples=40, deadline=None)
@given(rows=passages)
def test_parsed_facts_are_grounded_and_do_not_depend_on_the_batch(nlp, rows) -> None:
    together = list(nlp.pipe([text for _, text in rows]))
    for doc, (title, text) in zip(together, rows, strict=True):
        found = read_parse(doc, title=title, text=text)
        assert_grounded(found, title, text)
        assert found == read_parse(nlp(text), title=title, text=text)


field = st.sampled_from(["Rome", "rome", "is", "capital", "Italy", "", " ", "x y"]) | awkward
line = st.lists(field, max_size=5).map(" | ".join)


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(line, max_size=6),
    title=awkward,
    text=st.just("Rome is the capital of Italy.") | awkward,
    finish=st.sampled_from(["stop", "eos", "length"]),
)
def test_whatever_a_model_writes_is_read_or_counted(lines, title, text, finish) -> None:
    raw = "\n".join(lines)
    found = read_lines(Generation(raw, 1, 1, finish), title=title, text=text)
    assert_grounded(found, title, text)
    assert found.raw == raw
    counted = sum(n for reason, n in found.rejected.items() if reason != "malformed_passage")
    assert len(found.triples) + counted == sum(bool(x.strip()) for x in raw.split("\n"))


@given(
    candidates=st.lists(st.builds(Triple, field, field, field), max_size=8),
    title=awkward,
    text=awkward,
)
def test_every_candidate_is_kept_or_has_one_reason(candidates, title, text) -> None:
    rejected: Counter[str] = Counter()
    kept = keep_grounded(candidates, title=title, text=text, rejected=rejected)
    assert len(kept) + rejected.total() == len(candidates)
    assert keep_grounded(kept, title=title, text=text, rejected=rejected) == kept
