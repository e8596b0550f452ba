"""Facts with their vectors: what lies in which row, what opens them, what they refuse."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from facts_worlds import WordVectors, facts_of
from index_worlds import MOUNTAINS, built, encoder_dir, encoder_with, passages_of
from pydantic import ValidationError

from stages.chains import triple_text
from stages.encoder import open_encoder
from stages.errors import QuarryError
from stages.index import facts, open_index
from stages.tables import empty_table, table, write_table

# matterhorn#1 and etna-copy#0 have none.
TRIPLES = {
    "matterhorn#0": [("Matterhorn", "is mountain of", "Alps")],
    "fuji#0": [("Mount Fuji", "is", "volcano"), ("Mount Fuji", "is in", "日本; Japan")],
    "etna#0": [("Etna", "is", "volcano"), ("Etna", "is on coast of", "Sicily")],
    "rhine#0": [("Mount Fuji", "is", "volcano")],  # the same fact, of another passage
}


def triples_dir(folder: Path, triples=TRIPLES) -> Path:
    folder.mkdir()
    rows = [
        dict(docid=docid, seq=i, subj=s, rel=r, obj=o, text_hash="")
        for docid, own in triples.items()
        for i, (s, r, o) in enumerate(own)
    ]
    write_table(table("triples", rows), folder, "triples")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("facts")
    triples = triples_dir(folder / "triples")
    made = {
        dtype: built(
            folder, "facts", passages_of(MOUNTAINS), name=dtype, triples=triples, dtype=dtype,
            store=folder / "records",
        )
        for dtype in ("f32", "f16")
    }  # fmt: skip
    return SimpleNamespace(folder=folder, triples=triples, **made)


@pytest.fixture(scope="module")
def opened(world) -> facts.Facts:
    return open_index(world.f32.path, world.f32.model)


def test_facts_lie_passage_by_passage_and_passages_by_docid_descending(opened) -> None:
    owners = ["rhine#0", "matterhorn#0", "fuji#0", "fuji#0", "etna#0", "etna#0"]
    assert opened.docids(range(6)) == owners
    expected = [fact for docid in dict.fromkeys(owners) for fact in TRIPLES[docid]]
    assert [opened.triple(row) for row in range(6)] == expected
    assert opened.texts == [triple_text(*fact) for fact in expected]
    assert opened.unit == "triple"


def test_the_rows_of_passages_come_in_the_order_asked_for(opened) -> None:
    assert opened.of(["etna#0", "matterhorn#0"]).tolist() == [4, 5, 1]
    assert opened.of(["matterhorn#1", "etna-copy#0"]).tolist() == []
    assert opened.of([]).tolist() == [] and opened.of([]).dtype == np.int64
    assert opened.docids([]) == []


def test_kept_vectors_are_those_of_encoding_the_texts_again(opened, world) -> None:
    """The card's check 9: scores within 1e-5, so the same best facts."""
    encoder = open_encoder(encoder_dir("dense"), max_tokens=64)
    again = encoder.encode(opened.texts, "passage")
    (query,) = encoder.encode(["Which volcano is in Japan?"], "query")
    rows = np.arange(6)
    kept, new = opened.score(query, rows), again @ query
    assert np.abs(kept - new).max() < 1e-5
    distinct = [0, 1, 3, 4, 5]
    assert np.argsort(-kept[distinct]).tolist() == np.argsort(-new[distinct]).tolist()
    assert opened.texts[int(kept.argmax())] == "<Mount Fuji; is; volcano>"
    assert kept.dtype == np.float32 and isinstance(opened.vecs, np.memmap)


def test_an_equal_text_has_one_vector_and_is_encoded_once(opened, world) -> None:
    assert opened.texts[0] == opened.texts[2]
    assert (opened.vecs[0] == opened.vecs[2]).all()
    counts = world.f32.contents.facts
    assert (counts["encoded"], counts["facts"]) == (5, 6)
    assert (counts["passages"], counts["passages_without_facts"]) == (6, 2)
    assert world.f16.contents.facts["encoded"] == 0, "the record store had them"


def test_a_score_does_not_depend_on_the_rows_beside(opened) -> None:
    query = open_encoder(encoder_dir("dense")).encode(["a volcano"], "query")[0]
    together = opened.score(query, np.arange(6))
    assert together.tolist() == [opened.score(query, np.array([row]))[0] for row in range(6)]
    assert opened.score(query, opened.of([])).tolist() == []


@pytest.mark.parametrize("n", [1, 7, 60, 500])
def test_the_best_of_all_facts_are_those_of_scoring_each(n) -> None:
    """Also where n cuts through equal scores: ties go by row."""
    words = ["opera", "river", "city", "Verdi", "Italy", "born", "volcano", "Etna"]
    texts = [f"<{a}; {b}; {c}>" for a in words for b in words[:4] for c in words[4:]] * 2
    some = facts_of({f"d{i:03}": [text] for i, text in enumerate(texts)})
    (query,) = WordVectors().encode(["Verdi and the volcano"], "query")
    every = np.arange(len(texts))
    scores = some.score(query, every)
    expected = np.lexsort((every, -scores))[:n]
    for rows in (None, every, every[::-1]):
        best, values = some.best(query, n, rows)
        assert best.tolist() == expected.tolist()
        assert values.tolist() == scores[expected].tolist()


def test_half_the_bytes_cost_less_than_five_ten_thousandths(opened, world) -> None:
    half = open_index(world.f16.path, world.f16.model)
    assert half.vecs.nbytes * 2 == opened.vecs.nbytes
    query = open_encoder(encoder_dir("dense")).encode(["a volcano"], "query")[0]
    rows = np.arange(6)
    off = np.abs(half.score(query, rows) - opened.score(query, rows))
    assert 0 < off.max() <= 2**-11 + 1e-6


def test_an_index_depends_on_facts_and_passages_not_on_their_order(world, tmp_path) -> None:
    passages = passages_of(dict(reversed(MOUNTAINS.items())))
    again = built(
        tmp_path, "facts", passages, name="f32", triples=world.triples,
        store=world.folder / "records",
    )  # fmt: skip
    for file in world.f32.path.iterdir():
        assert (again.path / file.name).read_bytes() == file.read_bytes(), file.name
    other = triples_dir(tmp_path / "triples", {**TRIPLES, "matterhorn#1": [("a", "b", "c")]})
    changed = built(tmp_path, "facts", passages, name="other", triples=other)
    prints = [open_index(m.path, m.model).fingerprint for m in (world.f32, again, changed)]
    assert prints[0] == prints[1] != prints[2]


def test_a_sentence_or_a_passage_may_stand_for_the_triple(world, tmp_path) -> None:
    texts = {"a#0": ("Etna", "It is a volcano. It lies in Sicily."), "b#0": ("", "山は高い。")}
    texts |= {"empty#0": ("", "")}
    cut = built(tmp_path, "facts", passages_of(texts), name="s", unit="sentence")
    whole = built(tmp_path, "facts", passages_of(texts), name="d", unit="document")
    sentences = open_index(cut.path, cut.model)
    documents = open_index(whole.path, whole.model)
    assert sentences.texts == ["山は高い。", "Etna: It is a volcano.", "Etna: It lies in Sicily."]
    assert documents.texts == ["山は高い。", "Etna It is a volcano. It lies in Sicily."]
    assert documents.of(["empty#0", "a#0"]).tolist() == [1]


def test_no_passages_no_facts_and_one_of_one(tmp_path) -> None:
    none = triples_dir(tmp_path / "empty", {})
    made = built(tmp_path, "facts", empty_table("passages"), name="nothing", triples=none)
    nothing = open_index(made.path, made.model)
    assert nothing.texts == [] and nothing.vecs.shape == (0, 384)
    one = triples_dir(tmp_path / "one", {"etna#0": [("Etna", "is", "volcano")]})
    passages = passages_of({"etna#0": MOUNTAINS["etna#0"]})
    made = built(tmp_path, "facts", passages, name="single", triples=one)
    assert open_index(made.path, made.model).of(["etna#0"]).tolist() == [0]


def test_what_does_not_belong_together_is_refused(opened, world, tmp_path) -> None:
    with pytest.raises(QuarryError, match="no passage 'x#0': it was built from another corpus"):
        opened.of(["etna#0", "x#0"])
    fewer = passages_of({"fuji#0": MOUNTAINS["fuji#0"]})
    with pytest.raises(QuarryError, match="triples of passage '[a-z]+#0', which the corpus has no"):
        built(tmp_path, "facts", fewer, triples=world.triples)
    with pytest.raises(QuarryError, match="no encoder was given. Say scorer: minilm"):
        open_index(world.f32.path)
    cls = encoder_with("dense", tmp_path / "e5", {"1_Pooling/config.json": {"pooling_mode": "cls"}})
    with pytest.raises(QuarryError, match="the scorer is e5 .d=384, other fingerprint"):
        open_index(world.f32.path, cls)


@pytest.mark.parametrize("values", [{"unit": "sentence", "triples": "t"}, {"triples": "none"}])
def test_triples_are_named_where_they_are_facts_and_only_there(values) -> None:
    slots = {"kind": "facts", "corpus": "c", "model": "m", "centroids": "none"}
    with pytest.raises(ValidationError, match="needs"):
        facts.Params.model_validate(slots | values)
