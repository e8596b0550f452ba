"""Generation under hypothesis: what is said early is never taken back, batches do not show."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import Script, tiny_lm

from stages import lm
from stages.lm import LocalGenerator, open_generator, settled
from stages.types import Request

LETTERS = st.text("ab\n", max_size=8)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> LocalGenerator:
    return open_generator(tiny_lm(tmp_path_factory.mktemp("tiny")))


@given(LETTERS, LETTERS, STOPS)
def test_what_is_settled_is_in_every_text_that_can_follow(begun, rest, stops) -> None:
    if any(s in begun for s in stops):
        return  # it has ended already
    whole = begun + rest
    final = whole[: min((whole.find(s) for s in stops if s in whole), default=len(whole))]
    assert final.startswith(settled(begun, stops))


@given(LETTERS, STOPS)
def test_held_back_is_only_what_may_be_a_stop(text, stops) -> None:
    held = text[len(settled(text, stops)) :]
    assert held == "" or any(s.startswith(held) for s in stops)


REQUESTS = st.lists(
    st.builds(
        Request,
        prompt=st.sampled_from(["a", "hello", "x" * 40, "x" * 40 + "yz", "x" * 80]),
        max_tokens=st.integers(0, 12),
        stop=st.lists(st.sampled_from(["%", "e", "=e", "M6"]), max_size=2).map(tuple),
        temperature=st.sampled_from([0.0, 0.8]),
        top_p=st.sampled_from([0.5, 1.0]),
        seed=st.integers(0, 3),
    ),
    max_size=6,
)


@settings(max_examples=25, deadline=None)
@given(REQUESTS, st.lists(st.integers(0, 15), min_size=6, max_size=6), st.integers(1, 4))
def test_whenever_requests_come_they_get_what_they_get_alone(
    generator, requests, looks, rows
) -> None:
    admit_at: dict[int, list[tuple[str, Request]]] = {}
    for i, (request, look) in enumerate(zip(requests, looks, strict=False)):
        admit_at.setdefault(look, []).append((str(i), request))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "ROWS", rows)
        patch.setattr(lm, "PREFILL", 8 * rows)
        events = list(generator.stream(Script(admit_at)))
    done = {e.request_id: e.done for e in events if e.done}
    assert [done[str(i)] for i in range(len(requests))] == [
        generator.generate([r])[0] for r in requests
    ]
    for i in range(len(requests)):
        said = "".join(e.text for e in events if e.request_id == str(i))
        assert said == done[str(i)].text
