"""The suffix array over passages: against naive scanning, the card's example, its tokenizer."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_worlds import MOUNTAINS, passages_of
from language_models import tiny_lm
from pydivsufsort import divsufsort
from tokenizers import Tokenizer

from stages.errors import QuarryError
from stages.index import Inputs, layout, open_index, suffixes
from stages.index.suffixes import Suffixes
from stages.models import write_training
from stages.tables import empty_table
from stages.walks import levels, passage_text, walk_prompt


def suffixes_of(docs: list[list[int]], separator: int, banned: tuple[int, ...] = ()) -> Suffixes:
    arrays = suffixes.lay_out(docs, separator)
    arrays["sa"] = divsufsort(arrays["tokens"])
    n = max(separator, max((max(d) for d in docs if d), default=0))
    offered = np.ones(n + 1, bool)
    offered[[separator, *banned]] = False
    names = [str(i) for i in range(len(docs))]
    return Suffixes(**arrays, offered=offered, starts=offered, docids=names)


def test_the_cards_example_by_hand() -> None:
    """Two passages, separator 1 (check 2)."""
    index = suffixes_of([[3, 4, 3, 4, 5], [3, 5]], 1)
    assert index.tokens.tolist() == [3, 4, 3, 4, 5, 1, 3, 5, 1]
    assert index.sa.tolist() == [8, 5, 0, 2, 6, 1, 3, 7, 4]
    left, right = index.find([3])
    assert right - left == 3
    after = index.children(left, right, 1)
    assert dict(zip(after.token.tolist(), after.right - after.left, strict=True)) == {4: 2, 5: 1}
    left, right = index.find([3, 4])
    assert right - left == 2 and sorted(index.sa[left:right]) == [0, 2]
    after = index.children(left, right, 2)
    assert dict(zip(after.token.tolist(), after.right - after.left, strict=True)) == {3: 1, 5: 1}
    assert index.docs(*index.find([3]), 9) == [0, 1] and index.docs(*index.find([3, 4]), 9) == [0]
    assert index.text(0) == [3, 4, 3, 4, 5] and index.text(1) == [3, 5]


def naive(docs: list[list[int]], prefix: list[int]) -> tuple[int, dict[int, int], list[int]]:
    """How often a prefix occurs, what follows it how often, in which passages: by scanning."""
    n, follow, found = 0, {}, []
    for number, doc in enumerate(docs):
        for at in range(len(doc) - len(prefix) + 1):
            if doc[at : at + len(prefix)] == prefix:
                n += 1
                found.append(number)
                if at + len(prefix) < len(doc):
                    token = doc[at + len(prefix)]
                    follow[token] = follow.get(token, 0) + 1
    return n, follow, sorted(set(found))


corpora = st.lists(st.lists(st.integers(0, 4), max_size=30), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    docs=corpora, absent=st.lists(st.integers(0, 5), min_size=1, max_size=5), gather=st.booleans()
)
def test_it_says_what_scanning_says_for_every_prefix(docs, absent, gather) -> None:
    """All prefixes of up to 5 tokens, and one that may be absent (check 1); slices and halves."""
    index = suffixes_of(docs, 6, banned=(5,))
    prefixes = {tuple(d[i : i + n]) for d in docs for n in range(1, 6) for i in range(len(d))}
    asked = sorted({*prefixes, tuple(absent)})
    ranges = np.array([index.find(p) for p in asked])
    depths = np.array([len(p) for p in asked])
    before, suffixes.GATHER = suffixes.GATHER, suffixes.GATHER if gather else 0
    try:
        after = index.children(ranges[:, 0], ranges[:, 1], depths)
    finally:
        suffixes.GATHER = before
    candidates = np.broadcast_to(np.arange(7), (len(asked), 7))
    masks = index.mask(ranges[:, 0], ranges[:, 1], depths, candidates)
    some = index.among(ranges[:, 0], ranges[:, 1], depths, candidates)
    for mine, theirs in zip(some, after, strict=True):
        assert mine.tolist() == theirs.tolist(), "all tokens are candidates"
    lefts, rights = index.extend(ranges[:, :1], ranges[:, 1:], depths[:, None], candidates)
    for i, prefix in enumerate(asked):
        n, follow, found = naive(docs, list(prefix))
        left, right = ranges[i].tolist()
        assert right - left == n, prefix
        mine = after.owner == i
        counts = (after.right - after.left)[mine].tolist()
        assert dict(zip(after.token[mine].tolist(), counts, strict=True)) == follow
        assert after.token[mine].tolist() == sorted(follow)
        assert np.flatnonzero(masks[i]).tolist() == sorted(follow)
        if n:
            assert (rights - lefts)[i][:6].tolist() == [follow.get(t, 0) for t in range(6)]
        for k in np.flatnonzero(mine):
            there = (int(after.left[k]), int(after.right[k]))
            assert index.find([*prefix, int(after.token[k])]) == there
        assert index.docs(left, right, 10_000) == found


def test_a_prefix_never_crosses_a_separator_and_tokens_that_are_none_are_nowhere() -> None:
    index = suffixes_of([[2, 3], [4, 2]], 6)
    assert (
        index.find([3, 6]) == index.find([3, 6, 4]) == index.find([9]) == index.find([-1]) == (0, 0)
    )
    assert index.find([]) == (0, 6)
    left, right = index.find([3])
    assert len(index.children(left, right, 1).token) == 0


def test_limits_are_of_rows_and_no_range_has_no_passages() -> None:
    index = suffixes_of([[2, 2, 2], [2]], 6)
    left, right = index.find([2])
    assert index.docs(left, right, 10) == [0, 1] and len(index.docs(left, right, 1)) == 1
    assert index.docs(left, left, 10) == []


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("suffixes")
    return SimpleNamespace(folder=folder, model=tiny_lm(folder / "tiny"))


def built(world, passages, name: str) -> Path:
    slots = dict(kind="suffixes", corpus="c", model="tiny", centroids="none", triples="none")
    contents = suffixes.build(
        passages, suffixes.Params.model_validate(slots), Inputs(None, world.model)
    )
    (world.folder / name).mkdir()
    layout.write_index(world.folder / name, "suffixes", contents)
    return world.folder / name


def test_it_opens_as_it_was_written_memory_mapped_whatever_the_order_of_passages(world) -> None:
    path = built(world, passages_of(MOUNTAINS), "a")
    again = built(world, passages_of(dict(reversed(MOUNTAINS.items()))), "b")
    for file in path.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    index = open_index(path, world.model)
    assert isinstance(index.sa, np.memmap) and index.sa.dtype == np.int32
    assert index.tokens.dtype == np.uint16
    assert index.docids == sorted(MOUNTAINS, reverse=True)
    tokenizer = Tokenizer.from_file(str(world.model / "tokenizer.json"))
    for doc, docid in enumerate(index.docids):
        assert tokenizer.decode(index.text(doc)) == passage_text(*MOUNTAINS[docid])
    ids = tokenizer.encode(" Etna is a volcano", add_special_tokens=False).ids
    assert [index.docids[d] for d in index.docs(*index.find(ids), 9)] == ["etna-copy#0", "etna#0"]


def test_walks_begin_with_a_space_and_special_tokens_are_never_offered(world) -> None:
    path = built(world, passages_of({"a#0": ("", "in the <|end|> was")}), "special")
    index = open_index(path)
    tokenizer = Tokenizer.from_file(str(world.model / "tokenizer.json"))
    assert [tokenizer.id_to_token(int(t)) for t in index.roots.token] == ["Ġ"]
    end = tokenizer.token_to_id("<|end|>")
    assert end in index.text(0), "the passage spells it"
    space = tokenizer.encode(" ").ids
    after = index.children(*index.find(space), 1)
    assert end not in after.token and not index.mask(*index.find(space), 1, np.array([end]))[0]


def test_no_passages_and_an_empty_one(world) -> None:
    nothing = open_index(built(world, empty_table("passages"), "nothing"))
    assert nothing.find([1]) == (0, 0) and len(nothing.roots.token) == 0
    empty = open_index(built(world, passages_of({"a#0": ("", "")}), "empty"))
    assert len(empty.text(0)) == 1 and empty.docs(0, 2, 9) == [0]


def test_another_models_tokens_are_refused_and_a_trained_copys_are_not(world) -> None:
    path = built(world, passages_of(MOUNTAINS), "refuse")
    other = world.folder / "other"
    tiny_lm(other)
    saved = json.loads((other / "tokenizer.json").read_text())
    saved["model"]["vocab"] = dict(zip(saved["model"]["vocab"], range(255, -1, -1), strict=True))
    (other / "tokenizer.json").write_text(json.dumps(saved))
    write_training(other, "generator", recipe="other")
    with pytest.raises(QuarryError, match=r"tokens of tiny; other cuts texts into other tokens"):
        open_index(path, other)
    assert open_index(path, tiny_lm(world.folder / "copy", seed=8)).tokenizer
    with pytest.raises(QuarryError, match="no tokenizer here"):
        suffixes.open_tokenizer(world.folder)


def test_a_walk_goes_on_where_its_prompt_ends() -> None:
    assert passage_text("Aida", "An opera\nby  Verdi.") == " Aida. An opera by Verdi."
    assert passage_text("", "x") == " x"
    prompt = walk_prompt("Who\nwrote Aida?")
    assert prompt.endswith("\n\nQuestion: Who wrote Aida?\nPassage:")
    assert prompt.count("\nPassage: ") == 2, "shots read as passages do"
    assert levels(15, 6, 16) == [6, 12, 15] and levels(12, 6, 16) == [6, 12]
    assert levels(200, 6, 16) == list(range(6, 97, 6)) and levels(0, 6, 16) == []
