"""A query of several texts: the mean of their vectors in a dense index, an error elsewhere."""

import numpy as np
import pytest
from encoders import tiny_bert
from index_worlds import MOUNTAINS, built, encoder_dir, exact, opened, passages_of

from stages.encoder import encode_queries, open_encoder
from stages.errors import QuarryError
from stages.runs import search_documents

TEXTS = ("volcano in Japan", "a mountain of the Alps", "coast of Sicily")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("indexes")


@pytest.fixture(scope="module")
def flat(folder):
    return built(folder, "flat", passages_of(MOUNTAINS), max_tokens=32)


def test_the_mean_is_of_the_texts_as_each_is_alone(tmp_path) -> None:
    encoder = open_encoder(tiny_bert(tmp_path / "bert"), max_tokens=32)
    several, one, alone = encode_queries(encoder, [TEXTS, TEXTS[:1], TEXTS[0]])
    each = encoder.encode(TEXTS, "query").astype("f8")
    assert (several == (each.sum(0) / 3).astype("f4")).all()
    assert (one == alone).all() and (one == each[0].astype("f4")).all()
    assert encode_queries(encoder, []).shape == (0, encoder.dim)


def test_flat_and_ivf_rank_by_the_inner_product_with_the_mean(folder, flat) -> None:
    passages = passages_of(MOUNTAINS)
    values = {"nlist": 2, "seed": 13, "max_tokens": 32}
    centroids = built(folder, "centroids", passages, **values)
    ivf = built(folder, "ivf", passages, centroids=centroids.path, nprobe=2, max_tokens=32)
    encoder = open_encoder(encoder_dir("dense"), max_tokens=32)
    means = encode_queries(encoder, [TEXTS, TEXTS[:2]])
    vectors = np.asarray(flat.contents.arrays["vectors"])
    expected = exact(means, vectors, flat.contents.docids, 4)
    for made in (flat, ivf):
        found = opened(made).search([TEXTS, TEXTS[:2]], 4)
        assert [[(h.score, h.docid) for h in hits] for hits in found] == expected
    assert opened(flat).search([TEXTS[:1]], 4) == opened(flat).search([TEXTS[0]], 4)


def test_documents_are_found_by_the_mean_too(flat) -> None:
    [documents] = search_documents(opened(flat), [TEXTS], 3)
    [passages] = opened(flat).search([TEXTS], len(MOUNTAINS))
    best = list(dict.fromkeys(h.docid.partition("#")[0] for h in passages))[:3]
    assert [h.docid for h in documents] == best


@pytest.mark.parametrize("kind", ["bm25", "splade"])
def test_an_index_without_vectors_says_what_to_do(folder, kind) -> None:
    retriever = opened(built(folder, kind, passages_of(MOUNTAINS)))
    with pytest.raises(QuarryError, match=f"{kind} searches by words.*dense index.*combine: text"):
        retriever.search(["volcano", TEXTS], 3)
    assert retriever.search(["volcano"], 3)[0]
