"""What the local generator promises: batches that do not show, stops, seeds, slots, reuse."""

import json
from collections import Counter
from itertools import groupby
from math import exp
from pathlib import Path

import pytest
import torch
from language_models import Script, tiny_lm

from stages import lm
from stages.effects import TIE, pick
from stages.errors import QuarryError
from stages.lm import ContextOverflow, LocalGenerator, open_generator, sample
from stages.types import Generation, LogProb, Request, TokenEvent

HEADER = "You are shown facts. Answer the question with one of them, in a word. "  # > lm.SHARED


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny"), context=256)


@pytest.fixture
def generator(folder: Path) -> LocalGenerator:
    return open_generator(folder)


def by_request(events: list[TokenEvent]) -> dict[str, list[TokenEvent]]:
    found: dict[str, list[TokenEvent]] = {}
    for event in events:
        found.setdefault(event.request_id, []).append(event)
    return found


def test_a_request_alone_reads_as_in_any_company(generator) -> None:
    requests = [
        Request(c * n, 20) for c, n in zip("abcdefghijklmnopqrst", range(1, 21), strict=True)
    ]
    together = generator.generate(requests)
    assert together == [generator.generate([r])[0] for r in requests]
    assert together[::-1] == generator.generate(requests[::-1])


def test_costs_and_ends_are_told(generator) -> None:
    ended, cut, none = generator.generate(
        [Request("zürich", 40), Request("hello", 5), Request("hello", 0)]
    )
    assert (ended.finish, ended.tokens_in) == ("eos", len("zürich".encode()))
    assert ended.tokens_out == len(ended.text) + 1, "one token a letter, and the end"
    assert (cut.finish, cut.tokens_out, len(cut.text)) == ("length", 5, 5)
    assert none == Generation("", 5, 0, "length")
    assert generator.generate([]) == []
    assert generator.generate([Request("", 3)])[0].tokens_out > 0, "an empty prompt is a prompt"


def test_a_text_ends_before_the_first_stop_string(generator) -> None:
    whole = generator.generate([Request("hello", 40)])[0].text
    early, late = whole[6:9], whole[12:16]  # of several tokens: a stop string straddles them
    assert whole.index(late) > whole.index(early)
    [got] = generator.generate([Request("hello", 40, stop=(late, early, "never"))])
    assert got.text == whole[: whole.index(early)]
    assert got.finish == "stop"
    assert got.tokens_out == len(got.text) + len(early)


def test_streamed_pieces_are_the_text_and_never_part_of_a_stop_string(generator) -> None:
    whole = generator.generate([Request("hello", 40)])[0].text
    stop = whole[20:26]
    for request in (Request("hello", 40, stop=(stop,)), Request("hello", 24, stop=(stop + "#",))):
        events = list(generator.stream(Script({0: [("a", request)]})))
        assert "".join(e.text for e in events) == events[-1].done.text
        assert [e.done is None for e in events] == [True] * (len(events) - 1) + [False]
        assert events[-1].done == generator.generate([request])[0]
    assert events[-1].done.text.endswith(stop[:4]), "held back, then said as no stop followed"


def test_a_character_of_several_tokens_is_said_when_it_is_whole() -> None:
    assert lm.settled("Z\ufffd", ()) == "Z"
    assert lm.settled("a\n", ("\n\n",)) == "a"
    assert lm.settled("a\nb", ("\n\n",)) == "a\nb"
    assert lm.settled("xaba", ("abac", "bax")) == "x", "the longest hold"


def test_a_second_request_speaks_before_a_long_one_ends(generator) -> None:
    long, short = Request("why?", 200), Request("hello", 4)
    events = list(generator.stream(Script({0: [("long", long)], 50: [("short", short)]})))
    order = [name for name, _ in groupby(e.request_id for e in events)]
    assert order[:3] == ["long", "short", "long"]
    assert by_request(events)["long"][-1].done == generator.generate([long])[0]
    assert by_request(events)["short"][-1].done == generator.generate([short])[0]
    first = next(i for i, e in enumerate(events) if e.request_id == "short")
    assert 50 <= first <= 52, "it is let in at the next step and speaks at its end"


def test_a_cancelled_request_frees_its_place_within_two_steps(generator, monkeypatch) -> None:
    monkeypatch.setattr(lm, "ROWS", 2)
    new = [("a", Request("why?", 200)), ("b", Request("hello", 200)), ("c", Request("x" * 60, 9))]
    inbox = Script({0: new}, cancel_at={10: ["b", "nobody"]})
    events = list(generator.stream(inbox))
    at = [e.request_id for e in events]
    gone = next(i for i, e in enumerate(events) if e.done and e.request_id == "b")
    assert events[gone].done.finish == "cancelled"
    assert events[gone].done.tokens_out == 10
    assert events[gone].done.text == generator.generate([Request("hello", 10)])[0].text
    assert "c" not in at[:gone], "there was no place"
    assert at[gone + 1 :].index("c") <= 2
    done = {e.request_id: e.done for e in events if e.done}
    assert [done["a"], done["c"]] == generator.generate([new[0][1], new[2][1]])


def test_what_is_cancelled_while_it_waits_or_is_read_strands_nobody(generator, monkeypatch) -> None:
    monkeypatch.setattr(lm, "WINDOW", 3 * (len(HEADER) + 1 + 6))
    monkeypatch.setattr(lm, "PREFILL", 16)
    ask = [(c, Request(HEADER + c, 6)) for c in "abcd"]  # b and c copy from a, d waits
    events = list(generator.stream(Script({0: ask}, cancel_at={2: ["a", "d"]})))
    done = {e.request_id: e.done for e in events if e.done}
    assert done["a"] == Generation("", len(HEADER) + 1, 0, "cancelled")
    assert done["d"].finish == "cancelled"
    assert [done["b"], done["c"]] == generator.generate([r for _, r in ask[1:3]])


def test_an_open_inbox_with_nothing_in_it_is_waited_for(generator) -> None:
    late = Script({0: [("a", Request("hello", 2))], 30: [("b", Request("hello", 2))]})
    assert [e.request_id for e in generator.stream(late) if e.done] == ["a", "b"]


def test_a_sample_depends_on_its_seed_alone(generator) -> None:
    requests = [Request("hello", 20, temperature=1.0, top_p=0.9, seed=s) for s in range(8)]
    texts = [g.text for g in generator.generate(requests)]
    assert texts == [generator.generate([r])[0].text for r in requests]
    company = [Request("x" * n, 30) for n in (5, 50)]
    assert texts == [g.text for g in generator.generate([*company, *requests])[2:]]
    assert len(set(texts)) > 4, "seeds make a difference"
    torch.manual_seed(99)
    assert texts[0] == generator.generate(requests[:1])[0].text


def test_samples_follow_the_softmax_at_its_temperature() -> None:
    logits, request = torch.tensor([2.0, 1.0, 0.0, -9.0]), Request("", 1, temperature=2.0)
    random, n = torch.Generator().manual_seed(3), 4000
    drawn = Counter(sample(logits, request, random) for _ in range(n))
    weights = [exp(x / 2.0) for x in logits.tolist()]
    for token, weight in enumerate(weights):
        p = weight / sum(weights)
        assert drawn[token] / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


def test_the_nucleus_is_the_fewest_likeliest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([0.1, 0.5, 0.4]).log()
    random = torch.Generator().manual_seed(3)

    def drawn(top_p: float) -> set[int]:
        request = Request("", 1, temperature=1.0, top_p=top_p)
        return {sample(logits, request, random) for _ in range(200)}

    assert drawn(0.3) == {1}
    assert drawn(0.6) == {1, 2}
    assert drawn(0.95) == drawn(1.0) == {0, 1, 2}


def test_a_shared_beginning_is_read_once(folder) -> None:
    shared = LocalGenerator(folder)
    requests = [Request(HEADER + c * 9, 1) for c in "abcde"]
    apart = [LocalGenerator(folder).generate([r])[0] for r in requests]
    assert shared.generate(requests) == apart
    assert shared.tokens == len(HEADER) + 5 * 9
    shared.generate([Request(HEADER + "new", 1)])
    assert shared.tokens == len(HEADER) + 5 * 9 + 3, "what was read lately is still there"
    shared.generate([requests[0]])
    assert shared.tokens == len(HEADER) + 5 * 9 + 3 + 1, "the last token gives the first logits"


def test_beginnings_are_found_at_every_depth(folder) -> None:
    generator = LocalGenerator(folder)
    facts = {c: f"{c} Fact: {c * 40} " for c in "xy"}
    prompts = [HEADER + facts[c] + q for c in "xy" for q in ("who", "why", "how")]
    generator.generate([Request(p, 1) for p in prompts])
    assert generator.tokens == len(HEADER) + 2 * len(facts["x"]) + 2 * len("whowhyhow")


def test_kept_prompts_are_bounded_and_may_be_forgotten(folder, monkeypatch) -> None:
    monkeypatch.setattr(lm, "KEPT", 100)
    generator = LocalGenerator(folder)
    requests = [Request(HEADER + c * 20, 3) for c in "abc"]
    first = generator.generate(requests)
    assert sum(len(f.ids) for f in generator._kept) <= 100
    generator.generate([Request("q" * 90, 1)])
    assert generator.generate(requests) == first


def test_a_choice_reads_its_prompt_once(generator) -> None:
    before = generator.tokens
    [logps] = generator.choose([HEADER], [["yes", "no", "no!"]])
    # The last token of an option is only a target; that of the prompt is read for each option.
    assert generator.tokens - before == len(HEADER) + len("ye") + 1 + len("n") + 1 + len("no")
    apart = [generator.logprobs([HEADER], [o])[0].total for o in ("yes", "no", "no!")]
    assert logps == pytest.approx(apart, abs=TIE / 10)


def test_logprobs_of_nothing_are_zero(generator) -> None:
    assert generator.logprobs(["hello"], [""]) == [LogProb(0.0, 0)]
    assert generator.logprobs([], []) == []
    assert generator.choose(["hello"], [[]]) == [[]]


def test_the_probabilities_of_all_next_bytes_sum_to_one(folder, generator) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    printable = [c for c in vocabulary if " " < c <= "~"]
    [logps] = generator.choose(["hello"], [printable])
    assert 0.5 < sum(map(exp, logps)) < 1, "the rest is the end and what is not printable"


def test_close_choices_go_to_the_smaller_index() -> None:
    assert pick([-1.0, -1.0 + 0.9 * TIE, -3.0]) == 0
    assert pick([-1.0, -1.0 + 1.1 * TIE, -3.0]) == 1
    assert pick([-5.0]) == 0


def test_a_prompt_over_the_context_is_named_before_anything_runs(generator) -> None:
    before = generator.tokens
    with pytest.raises(ContextOverflow, match=r"request 1 has 256 tokens.*context has 256") as e:
        generator.generate([Request("a", 2), Request("b" * 256, 2)])
    assert e.value.index == 1
    with pytest.raises(ContextOverflow, match="request 0 has 257 tokens"):
        generator.logprobs(["b" * 256], ["c"])
    assert generator.tokens == before
    assert generator.context == 256
    assert generator.count_tokens(["b" * 256, "", "é"]) == [256, 0, 2]


def test_a_text_ends_where_the_context_ends(generator) -> None:
    [got] = generator.generate([Request("?" * 250, 50)])
    assert (got.finish, got.tokens_out) == ("length", 6)


def test_in_a_stream_an_overlong_prompt_ends_at_once_and_the_others_go_on(generator) -> None:
    new = [("long", Request("b" * 256, 9)), ("ok", Request("hello", 3))]
    done = {e.request_id: e.done for e in generator.stream(Script({0: new})) if e.done}
    assert done["long"] == Generation("", 256, 0, "length")
    assert done["ok"].tokens_out == 3


def test_a_request_that_makes_no_sense_is_refused(generator) -> None:
    for bad in (Request("a", 1, stop=("",)), Request("a", 1, temperature=-1.0),
                Request("a", 1, temperature=1.0, top_p=0.0)):  # fmt: skip
        with pytest.raises(ValueError, match="not a request"):
            generator.generate([bad])


def test_calls_and_prompts_are_counted(generator) -> None:
    generator.generate([Request("a", 1), Request("b", 1)])
    generator.logprobs(["a"], ["b"])
    generator.generate([])
    assert (generator.calls, generator.prompts) == (2, 3)


def test_a_folder_that_is_no_generator_is_refused(folder, tmp_path) -> None:
    with pytest.raises(QuarryError, match="not a model directory"):
        open_generator(tmp_path)
    assert open_generator(folder).fingerprint == json.loads(
        (folder / "training.json").read_text()
    )["fingerprint"]  # fmt: skip
