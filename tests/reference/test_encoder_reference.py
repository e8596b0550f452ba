"""Our vectors are those of sentence-transformers and of the SPLADE formula on plain batches."""

import numpy as np
import torch
from index_worlds import MOUNTAINS, encoder_dir
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from stages.encoder import open_encoder

TEXTS = [f"{title} {text}" for title, text in MOUNTAINS.values()] + ["", "etna " * 200]


def test_dense_vectors_are_those_of_sentence_transformers() -> None:
    reference = SentenceTransformer(str(encoder_dir("dense")), device="cpu")
    reference.max_seq_length = 128
    ours = open_encoder(encoder_dir("dense"), max_tokens=128).encode(TEXTS, "passage")
    theirs = reference.encode(TEXTS, normalize_embeddings=True)
    assert np.abs(ours - theirs).max() < 1e-6


def test_sparse_vectors_are_the_maximum_of_log_1_plus_relu_over_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_dir("sparse"))
    model = AutoModelForMaskedLM.from_pretrained(encoder_dir("sparse"))
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.inference_mode():
        weights = torch.log1p(torch.relu(model(**batch).logits))
        theirs = (weights * batch["attention_mask"].unsqueeze(-1)).amax(1).numpy()
    ours = open_encoder(encoder_dir("sparse"), "sparse", max_tokens=128).encode(TEXTS, "passage")
    assert np.abs(ours.toarray() - theirs).max() < 1e-5
