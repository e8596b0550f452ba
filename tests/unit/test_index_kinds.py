"""What all kinds have in common: small corpora, awkward queries, fingerprints, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from index_worlds import MOUNTAINS, built, encoder_dir, encoder_with, opened, passages_of

from stages.errors import QuarryError
from stages.index import KINDS, open_index
from stages.index.centroids import pin, train
from stages.tables import empty_table

SEARCHED = ["bm25", "splade", "flat", "ivf", "clustered"]
QUERIES = ["volcano", "a river in the Alps", "Mount Fuji", "when was it climbed", ""]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """One record store for the file: a passage is encoded once here too."""
    return tmp_path_factory.mktemp("records")


def build(folder: Path, kind: str, passages, store: Path, **values) -> SimpleNamespace:
    if kind in ("ivf", "clustered"):
        cut = built(folder, "centroids", passages, store=store, nlist=3)
        values = {"centroids": cut.path, "nprobe": 2, **values}
    return built(folder, kind, passages, store=store, **values)


@pytest.fixture(scope="module", params=SEARCHED)
def mountains(request, tmp_path_factory, store) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    return build(folder, request.param, passages_of(MOUNTAINS), store)


def test_results_do_not_depend_on_the_queries_beside(mountains) -> None:
    retriever = opened(mountains)
    together = retriever.search(QUERIES, 4)
    assert together == [retriever.search([q], 4)[0] for q in QUERIES]
    assert retriever.search(QUERIES[::-1] * 7, 4) == together[::-1] * 7
    assert retriever.search([], 4) == []


def test_the_k_best_are_a_prefix_and_in_order(mountains) -> None:
    retriever = opened(mountains)
    for longer in retriever.search(QUERIES, 99):
        assert longer == sorted(longer, key=lambda h: (h.score, h.docid), reverse=True)
    for k in range(6):
        assert retriever.search(QUERIES, k) == [h[:k] for h in retriever.search(QUERIES, 99)]


def test_equal_texts_have_equal_scores_and_the_larger_docid_first(mountains) -> None:
    (hits,) = opened(mountains).search(["Etna volcano coast Sicily"], 2)
    assert [h.docid for h in hits] == ["etna-copy#0", "etna#0"] and hits[0].score == hits[1].score


def test_an_index_does_not_depend_on_the_order_of_its_passages(mountains, tmp_path, store) -> None:
    kind = mountains.path.name
    table = passages_of(MOUNTAINS)
    again = build(tmp_path, kind, table.take(list(range(len(table)))[::-1]), store)
    names = sorted(f.name for f in mountains.path.iterdir())
    assert names == sorted(f.name for f in again.path.iterdir())
    for name in names:
        assert (mountains.path / name).read_bytes() == (again.path / name).read_bytes(), name


@pytest.mark.parametrize("kind", SEARCHED)
def test_an_empty_corpus_has_an_index_without_hits(kind, tmp_path, store) -> None:
    retriever = opened(build(tmp_path, kind, empty_table("passages"), store))
    assert retriever.search(["volcano", ""], 5) == [[], []]


@pytest.mark.parametrize("kind", SEARCHED)
def test_a_corpus_of_one_document_is_found(kind, tmp_path, store) -> None:
    one = passages_of({"etna#0": MOUNTAINS["etna#0"]})
    (hits,) = opened(build(tmp_path, kind, one, store)).search(["volcano"], 5)
    assert [h.docid for h in hits] == ["etna#0"] and hits[0].score > 0


def test_passages_without_a_word_are_no_trouble(tmp_path, store) -> None:
    blank = passages_of({"a#0": ("", ""), "b#0": ("", "!?")})
    for kind in SEARCHED:
        folder = tmp_path / kind
        folder.mkdir()
        (hits,) = opened(build(folder, kind, blank, store)).search(["volcano"], 5)
        assert len(hits) == (0 if kind == "bm25" else len(hits))


def test_the_fingerprint_changes_with_the_passages_and_with_the_settings(tmp_path, store) -> None:
    table = passages_of(MOUNTAINS)
    made = [
        built(tmp_path, "bm25", table, name="a"),
        built(tmp_path, "bm25", table.slice(1), name="b"),
        built(tmp_path, "bm25", table, name="c", b=0.5),
        built(tmp_path, "bm25", table, name="d"),
    ]
    prints = [open_index(m.path).fingerprint for m in made]
    assert len(set(prints)) == 3 and prints[0] == prints[3]
    cut = built(tmp_path, "centroids", table, store=store, nlist=3)
    one, two = (
        built(tmp_path, "ivf", table, name=f"p{n}", store=store, centroids=cut.path, nprobe=n)
        for n in (1, 2)
    )
    assert opened(one).fingerprint != opened(two).fingerprint


def test_another_encoder_is_refused(tmp_path, store) -> None:
    made = build(tmp_path, "flat", passages_of(MOUNTAINS), store)
    cls = encoder_with("dense", tmp_path / "e5", {"1_Pooling/config.json": {"pooling_mode": "cls"}})
    with pytest.raises(QuarryError) as refused:
        open_index(made.path, cls)
    assert str(refused.value) == (
        "index 'flat' was built with minilm (d=384); the encoder is e5 (d=384, other "
        "fingerprint). Say encoder: minilm in the entry that searches it, or model: e5 in the "
        "index's."
    )
    with pytest.raises(QuarryError, match="no encoder was given. Say encoder: minilm"):
        open_index(made.path)
    with pytest.raises(QuarryError, match="is a sparse model, a dense model is needed"):
        open_index(made.path, encoder_dir("sparse"))


def test_what_is_no_index_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match=r"not an index \(no meta.json\).*dvc repro index@"):
        open_index(tmp_path)
    made = built(tmp_path, "bm25", passages_of(MOUNTAINS))
    (made.path / "docids.json").write_text("[", encoding="utf-8")
    with pytest.raises(QuarryError, match="a damaged index.*dvc repro -f index@bm25"):
        open_index(made.path)


def test_no_array_of_an_index_needs_unpickling(mountains) -> None:
    for file in mountains.path.glob("*.npy"):
        assert np.load(file, allow_pickle=False).dtype.kind in "iuf"
    meta = json.loads((mountains.path / "meta.json").read_text(encoding="utf-8"))
    assert meta["passages"] == len(MOUNTAINS) and meta["kind"] in KINDS


# -- centroids and lists ------------------------------------------------------------------


def test_ivf_that_probes_every_list_is_flat(tmp_path, store) -> None:
    table = passages_of(MOUNTAINS)
    flat = opened(build(tmp_path, "flat", table, store))
    ivf = opened(build(tmp_path, "ivf", table, store, nprobe=99))
    for k in (1, 3, 99):
        assert ivf.search(QUERIES, k) == flat.search(QUERIES, k)


def test_ivf_that_probes_one_list_finds_a_part_of_flat(tmp_path, store) -> None:
    table = passages_of(MOUNTAINS)
    flat = opened(build(tmp_path, "flat", table, store)).search(QUERIES, 99)
    ivf = opened(build(tmp_path, "ivf", table, store, nprobe=1)).search(QUERIES, 99)
    assert all(0 < len(some) < len(every) for some, every in zip(ivf, flat, strict=True))
    assert all(set(some) <= set(every) for some, every in zip(ivf, flat, strict=True))


def test_fewer_points_than_lists_give_one_list_for_each_distinct_point(tmp_path, store) -> None:
    cut = built(tmp_path, "centroids", passages_of(MOUNTAINS), store=store, nlist=50)
    assert len(cut.contents.arrays["centroids"]) == 5, "6 passages, two of them equal"
    assert len(train(np.empty((0, 384), "f4"), nlist=8, seed=1)) == 0


def test_the_sample_is_pinned_by_the_smallest_text_hashes() -> None:
    hashes = ["07", "99", "07", "01", "50"]
    assert pin(hashes, 3) == [3, 0, 4]
    assert pin([*hashes, "60", "98"], 3) == [3, 0, 4], "other passages do not change it"
    assert pin(hashes, 99) == [3, 0, 4, 1]


def test_centroids_do_not_depend_on_the_names_or_the_order_of_passages(tmp_path, store) -> None:
    renamed = {f"{i}#0": MOUNTAINS[d] for i, d in enumerate(sorted(MOUNTAINS))}
    a, b = (
        built(tmp_path, "centroids", passages_of(texts), name=name, store=store, nlist=2)
        for name, texts in (("a", MOUNTAINS), ("b", renamed))
    )
    assert (a.path / "centroids.npy").read_bytes() == (b.path / "centroids.npy").read_bytes()


def test_centroids_that_do_not_fit_are_refused(tmp_path, store) -> None:
    table = passages_of(MOUNTAINS)
    flat = build(tmp_path, "flat", table, store)
    with pytest.raises(QuarryError, match="'flat' is of kind flat; centroids are needed"):
        build(tmp_path, "ivf", table, store, centroids=flat.path)
    short = built(tmp_path, "centroids", table, name="short", store=store, nlist=2, max_tokens=8)
    with pytest.raises(QuarryError, match="max_tokens 8.*max_tokens 128.*same model and values"):
        built(tmp_path, "ivf", table, store=store, centroids=short.path, nprobe=1)
    none = built(tmp_path, "centroids", table.slice(0, 0), name="hollow", store=store, nlist=2)
    with pytest.raises(QuarryError, match="'hollow' holds no centroids: its corpus is empty"):
        built(tmp_path, "ivf", table, store=store, centroids=none.path, nprobe=1)
    with pytest.raises(QuarryError, match="holds centroids, not passages"):
        open_index(short.path, encoder_dir("dense"))
