"""The dense recipe on a tiny random encoder and a corpus of ten documents."""

import json
from math import log2
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from stages.checkpoint import CHECKPOINTS
from stages.digest import folder_digest
from stages.encoder import open_encoder
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.finetune import dense as recipe
from stages.models import read_training, write_training
from stages.tables import table, write_table
from stages.types import Hit

torch.set_num_threads(1)
WORDS = ["oak", "elm", "cod", "eel", "iron", "gold", "rain", "snow", "harp", "drum"]
GREEK = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
VALUES = {
    "recipe": "dense", "corpus": "c", "pairs": "none", "index": "i", "encoder": "none",
    "model": "m", "steps": 30, "batch": 4, "negatives": 1, "skip": 0, "depth": 5, "lr": 1e-2,
    "seed": 3, "dev_tokens": 16, "max_tokens": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_checkout_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUARRY_RECORDS", raising=False)


class Ranked:
    """Stands for an index: every document for every query, by docid."""

    fingerprint = "fixed"

    def search(self, queries, k):
        return [[Hit(f"{w}#0", 1.0) for w in sorted(WORDS)][:k] for _ in queries]


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch) -> Inputs:
    """Document "oak" is found by asking "alpha", and so on; even ones train, odd ones dev."""
    corpus, base = tmp_path / "corpus", tmp_path / "base"
    corpus.mkdir()
    base.mkdir()
    write_table(
        table("passages", [
            {"docid": f"{w}#0", "parent": w, "seq": 0, "title": "", "text": f"the {w} of {w}",
             "start": 0, "end": 9, "text_hash": w}
            for w in WORDS
        ]), corpus, "passages",
    )  # fmt: skip
    write_table(
        table("queries", [
            {"qid": g, "text": g, "split": ("train", "dev")[i % 2], "answers": [], "options": [],
             "meta": "{}"}
            for i, g in enumerate(GREEK)
        ]), corpus, "queries",
    )  # fmt: skip
    pairs = list(zip(GREEK, WORDS, strict=True))
    write_table(
        table("qrels", [{"qid": g, "docid": w, "rel": 1} for g, w in pairs]), corpus, "qrels"
    )
    _tiny_encoder(base)
    monkeypatch.setattr(recipe, "open_index", lambda path, encoder=None: Ranked())
    return Inputs(corpus=corpus, index=tmp_path / "index", model=base)


def _tiny_encoder(folder: Path) -> None:
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *GREEK])}
    tokenizer = Tokenizer(models.WordLevel(vocab, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    write_training(folder, "dense", recipe="test")


def train(inputs: Inputs, name: str, **changes) -> Path:
    out = Path(name)
    out.mkdir()
    recipe.train(recipe.Params.model_validate(VALUES | changes), inputs, out)
    return out


def test_training_brings_queries_to_their_documents_and_seals_a_plain_directory(
    inputs: Inputs,
) -> None:
    out = train(inputs, "out")

    def similarity(folder: Path) -> float:
        encoder = open_encoder(folder, max_tokens=16)
        queries = encoder.encode(GREEK[::2], "query")
        documents = encoder.encode([f"the {w} of {w}" for w in WORDS[::2]], "passage")
        hits = (queries @ documents.T).argmax(1) == range(len(queries))
        return hits.mean()

    assert similarity(out) == 1.0 > similarity(inputs.model)
    names = {p.name for p in out.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= names
    assert not [n for n in names if Path(n).suffix in {".bin", ".pt", ".pkl", ".md"}]
    made = read_training(out, "dense")["made_by"]
    assert made["rows"] == 5 and set(made["dev_ndcg_at_10"]) == {"before", "after"}


def test_equal_inputs_make_equal_bytes_and_another_seed_other_bytes(inputs: Inputs) -> None:
    first = folder_digest(train(inputs, "one", steps=3))
    assert folder_digest(train(inputs, "two", steps=3)) == first
    assert folder_digest(train(inputs, "three", steps=3, seed=4)) != first


def test_a_killed_training_resumes_from_its_checkpoint_to_equal_bytes(
    inputs: Inputs, monkeypatch
) -> None:
    whole = folder_digest(train(inputs, "whole", steps=12))
    monkeypatch.setattr(recipe, "SAVE_EVERY", 5)
    rates = []
    step = torch.optim.AdamW.step

    def dies(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        if len(rates) == 8:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(inputs, "killed", steps=12)
    assert [p.suffix for p in CHECKPOINTS.iterdir()] == [".safetensors"]
    other = folder_digest(train(inputs, "other", steps=12, seed=4))
    assert other != whole and len(rates) == 8 + 12, "another training's checkpoint is not taken"
    assert folder_digest(train(inputs, "resumed", steps=12)) == whole
    assert len(rates) == 8 + 12 + (12 - 5)
    assert rates[-7:] == rates[8 + 5 : 8 + 12], "the rate goes on where it was"
    assert not list(CHECKPOINTS.iterdir())


def test_a_training_killed_after_its_last_step_has_no_step_left(
    inputs: Inputs, monkeypatch
) -> None:
    whole = folder_digest(train(inputs, "whole", steps=3))

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recipe, "dev_ndcg", dies)
        train(inputs, "killed", steps=3)
    monkeypatch.setattr(recipe.SentenceTransformerTrainer, "train", dies)
    assert folder_digest(train(inputs, "resumed", steps=3)) == whole


def test_the_result_opens_in_sentence_transformers_with_the_same_vectors(inputs: Inputs) -> None:
    out = train(inputs, "out", steps=3)
    theirs = SentenceTransformer(str(out), device="cpu").encode(["oak", "alpha"])
    ours = open_encoder(out, max_tokens=16).encode(["oak", "alpha"], "query")
    theirs /= (theirs**2).sum(1, keepdims=True) ** 0.5
    assert abs(theirs - ours).max() < 1e-5


def test_columns_carry_the_models_own_prompts_in_the_order_of_the_batches() -> None:
    rows = [recipe.Row("q", "a", ("b",)), recipe.Row("r", "b", ("a",))]
    columns = recipe.to_columns(
        [[rows[1]], [rows[0]]], {"q": "Q", "r": "R"}, {"a": "A", "b": "B"},
        {"query": "query: ", "passage": ""},
    )  # fmt: skip
    assert columns == {
        "query": ["query: R", "query: Q"], "positive": ["B", "A"], "negative_1": ["A", "B"],
    }  # fmt: skip


def test_ndcg_by_hand() -> None:
    grades = {"a": 2, "b": 1}
    best = 2 / log2(2) + 1 / log2(3)
    assert recipe.ndcg(["a", "b"], grades) == 1.0
    assert recipe.ndcg(["b", "x", "a"], grades) == pytest.approx((1 + 2 / log2(4)) / best)
    assert recipe.ndcg(["x"] * 10 + ["a"], grades) == 0.0
    assert recipe.ndcg([], grades) == 0.0


def test_a_corpus_without_judgements_is_an_error(inputs: Inputs) -> None:
    write_table(table("qrels", []), inputs.corpus, "qrels")
    with pytest.raises(QuarryError, match="no judged document for a query of split train"):
        train(inputs, "out")


def test_a_corpus_without_dev_questions_has_nothing_to_report(inputs: Inputs) -> None:
    pairs = [{"qid": GREEK[i], "docid": WORDS[i], "rel": 1} for i in range(0, 10, 2)]
    write_table(table("qrels", pairs), inputs.corpus, "qrels")
    made = json.loads((train(inputs, "out", steps=1) / "training.json").read_text())["made_by"]
    assert made["dev_ndcg_at_10"] == {"before": None, "after": None}
