"""What an encoder reads from its directory, counts, refuses, and leaves in the record store."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders import tiny_bert
from index_worlds import encoder_dir, encoder_with

from stages.encoder import embed, fixed_shape, open_encoder
from stages.errors import QuarryError
from stages.models import write_training
from stages.records import RecordStore

TEXTS = ["The Matterhorn is a mountain.", "Etna is a volcano.", "The Matterhorn is a mountain."]
DOCIDS = ["matterhorn#0", "etna#0", "cervino#0"]


@pytest.fixture(scope="module")
def dense():
    return open_encoder(encoder_dir("dense"))


@pytest.fixture(scope="module")
def sparse():
    return open_encoder(encoder_dir("sparse"), "sparse")


def test_shapes_are_few_and_padding_is_below_a_quarter() -> None:
    assert [fixed_shape(n, 512) for n in (1, 4, 5, 32, 33, 64, 65, 127, 128, 129, 512)] == [
        (16, 4), (16, 4), (16, 8), (16, 32), (12, 40), (8, 64), (6, 80), (4, 128), (4, 128),
        (3, 160), (1, 512),
    ]  # fmt: skip
    assert fixed_shape(0, 512) == (16, 4)
    assert fixed_shape(1024, 512) == (1, 1024), "one row, however long"
    assert all(fixed_shape(n, 512)[1] - n < max(4, n / 4) for n in range(1, 513))
    assert len({fixed_shape(n, 512) for n in range(1, 513)}) == 24


def test_dense_vectors_have_unit_length_and_like_texts_are_near(dense) -> None:
    a, b, c = dense.encode(["a volcano in Sicily", "Mount Etna erupts", "tax law"], "passage")
    assert np.allclose([a @ a, b @ b, c @ c], 1.0, atol=1e-6)
    assert a @ b > 0.3 > 0.1 > a @ c


def test_sparse_weights_are_positive_and_few_and_hold_the_text_own_words(sparse) -> None:
    vectors = sparse.encode(["volcano"], "passage")
    word = sparse.model.tokenizer.convert_tokens_to_ids("volcano")
    assert vectors.shape == (1, 30_522) and 0 < vectors.nnz < 1_000
    assert vectors.data.min() > 0 and vectors[0, word] == vectors.data.max()


@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_no_texts_give_no_rows_and_call_no_model(role: str, request, tmp_path: Path) -> None:
    encoder = request.getfixturevalue(role)
    before = encoder.model.encoded
    assert encoder.encode([], "query").shape == (0, encoder.dim)
    with RecordStore(tmp_path) as store:
        assert embed(encoder, [], [], store).shape == (0, encoder.dim)
    assert encoder.model.encoded == before


@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_a_text_is_encoded_once_across_calls_and_documents(role, request, tmp_path: Path) -> None:
    encoder = request.getfixturevalue(role)
    before = encoder.model.encoded
    with RecordStore(tmp_path) as store:
        first = embed(encoder, DOCIDS, TEXTS, store)
        assert encoder.model.encoded == before + 2, "two of the three texts are equal"
        again = embed(encoder, ["new#0", *DOCIDS[::-1]], ["Fuji.", *TEXTS[::-1]], store)
        assert encoder.model.encoded == before + 3, "only the new text went to the model"
        assert (store.hits, store.misses) == (2, 3)
    fresh = encoder.encode(TEXTS, "passage")
    assert abs(first - fresh).max() == 0
    assert abs(again[1:] - fresh[::-1]).max() == 0


@pytest.mark.parametrize("fewest", [1, 3, 17])
@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_a_lone_text_is_read_with_as_few_dummy_rows_as_change_nothing(
    role: str, fewest: int, monkeypatch
) -> None:
    """On a processor where ``fewest`` rows give the bits of 16: which is so differs."""
    encoder = open_encoder(encoder_dir(role), role)
    forward, shapes = encoder.model._forward, []

    def processor(ids, mask, pool):
        shapes.append(tuple(ids.shape))
        whole = [torch.cat([x, x[-1:].expand(16 - len(x), -1)]) for x in (ids, mask)]
        vectors = forward(*whole, pool)[: len(ids)]
        return vectors * (1 + 1e-6) if len(ids) < min(fewest, 16) else vectors

    monkeypatch.setattr(encoder.model, "_forward", processor)
    asked = ["Who climbed it?", "Who painted it?", "Who wrote it?", "Who saw it?"]
    alone = [encoder.encode([text], "query") for text in asked]
    together = encoder.encode(asked, "query")
    for i, vector in enumerate(alone):
        assert abs(vector - together[i : i + 1]).max() == 0, "and its bits are the same"
    assert len({length for _, length in shapes}) == 1
    tried = {1: [1], 3: [1, 2, 3], 17: [1, 2, 3, 5, 9]}[fewest]
    then = {1: 1, 3: 3, 17: 16}[fewest]
    assert [rows for rows, _ in shapes] == [16, 16, *tried, then, then, 16]
    shapes.clear()
    for _ in range(3):
        encoder.encode(asked[:2], "query")
    new = {1: [2], 3: [], 17: [4, 6, 10]}[fewest]  # what was tried for one text is known
    assert [rows for rows, _ in shapes] == [16, 16, *new, max(then, 2)]


def test_weights_are_not_loaded_where_every_vector_is_kept(dense, tmp_path: Path) -> None:
    fresh = open_encoder(encoder_dir("dense"))
    with RecordStore(tmp_path) as store:
        vectors = embed(dense, DOCIDS, TEXTS, store)
        assert (embed(fresh, DOCIDS, TEXTS, store) == vectors).all()
    assert fresh.model.encoded == 0 and "net" not in vars(fresh.model)


def test_another_length_or_another_model_is_another_record_and_more_threads_are_not(
    dense, sparse
) -> None:
    longer = open_encoder(encoder_dir("dense"), max_tokens=256)
    keys = {e.model.key("text", "passage") for e in (dense, sparse, longer)}
    assert len(keys) == len({e.fingerprint for e in (dense, sparse, longer)}) == 3
    two = open_encoder(encoder_dir("dense"), threads=2)
    assert two.fingerprint == dense.fingerprint
    assert two.model.key("text", "passage") == dense.model.key("text", "passage")


def test_text_beyond_max_tokens_is_not_read() -> None:
    encoder = open_encoder(encoder_dir("dense"), max_tokens=8)
    words = "one two three four five six"  # with the two marks of the model: 8 tokens
    a, b, c = encoder.encode([words, words + " seven eight", "zero " + words], "passage")
    assert (a == b).all() and (a != c).any()


def test_the_prompts_of_the_model_directory_stand_before_queries_and_passages(
    tmp_path, dense
) -> None:
    said = {"prompts": {"query": "query: ", "document": "passage: "}}
    folder = encoder_with("dense", tmp_path / "e5", {"config_sentence_transformers.json": said})
    e5 = open_encoder(folder)
    plain = dense.encode(["query: Fuji", "passage: Fuji"], "query")
    assert (e5.encode(["Fuji"], "query")[0] == plain[0]).all()
    assert (e5.encode(["Fuji"], "passage")[0] == plain[1]).all()


@pytest.mark.parametrize(
    "config",
    [{"pooling_mode": "cls"}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}],
)
def test_pooling_is_what_the_directory_says_in_both_of_its_dialects(tmp_path, config) -> None:
    encoder = open_encoder(
        encoder_with("dense", tmp_path / "cls", {"1_Pooling/config.json": config})
    )
    tokens = encoder.model.tokenizer(["Fuji"], return_tensors="pt")
    with torch.inference_mode():
        first = encoder.model.net(**tokens).last_hidden_state[0, 0].numpy()
    assert np.allclose(
        encoder.encode(["Fuji"], "query")[0], first / np.linalg.norm(first), atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pooling 'lasttoken'.*mean, cls"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling 'pooling_mode_max"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module .*Dense is not"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, name, value, message) -> None:
    folder = encoder_with("dense", tmp_path / "odd", {name: value})
    with pytest.raises(QuarryError, match=message):
        open_encoder(folder)


def test_a_model_of_another_role_or_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuarryError, match="is a sparse model, a dense model is needed"):
        open_encoder(encoder_dir("sparse"), "dense")
    folder = encoder_with("dense", tmp_path / "m", {})
    (folder / "tokenizer.json").unlink()
    with pytest.raises(QuarryError, match=r"without tokenizer\.json"):
        open_encoder(folder)


def test_weights_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    folder = encoder_with("dense", tmp_path / "headless", {})  # no language-model head
    (folder / "training.json").unlink()
    write_training(folder, "sparse", recipe="package")
    with pytest.raises(QuarryError, match="no weights for cls.predictions.*not a sparse encoder"):
        open_encoder(folder, "sparse").encode(["Fuji"], "query")


@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_nan_in_a_vector_names_the_document_and_nothing_is_kept(role: str, tmp_path: Path) -> None:
    encoder = open_encoder(encoder_dir(role), role)
    damaged = encoder.model.tokenizer("etna")["input_ids"][1]
    with torch.no_grad():
        encoder.model.net.get_input_embeddings().weight[damaged] = torch.nan
    with RecordStore(tmp_path) as store:
        with pytest.raises(QuarryError, match=r"document 'etna#0' has NaN.*dvc repro -f finetune@"):
            embed(encoder, DOCIDS, TEXTS, store)
        assert store.size_bytes() == 0


def test_passes_have_one_thread_of_torch_and_every_other_thread_has_what_it_had() -> None:
    def new() -> int:
        with ThreadPoolExecutor(1) as later:
            return later.submit(torch.get_num_threads).result()

    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        encoder = open_encoder(encoder_dir("dense"), threads=2)
        net = encoder.model.net
        net.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        encoder.encode(["Fuji", "Etna is a volcano in the east of Sicily, Italy"], "query")
        assert seen == [1, 1]
        assert torch.get_num_threads() == new() == 3
    finally:
        torch.set_num_threads(before)


def test_an_encoder_that_has_read_nothing_can_be_sent_to_another_process(tmp_path: Path) -> None:
    """As ``engine: ray`` does; a copy asks for what a journey asks for."""
    folder = tiny_bert(tmp_path / "tiny")
    here = open_encoder(folder, threads=2)
    there = copy.deepcopy(here)
    assert np.array_equal(there.encode(["amber"], "query"), here.encode(["amber"], "query"))


def test_directories_are_only_read(dense) -> None:
    made = json.loads((encoder_dir("dense") / "training.json").read_text(encoding="utf-8"))
    assert made["role"] == "dense" and made["made_by"] == {"recipe": "package"}
