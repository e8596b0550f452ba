"""A dense encoder for tests of the plumbing: tiny, random, made in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from stages.models import write_training


def tiny_bert(folder: Path, *, seed: int = 3) -> Path:
    """A BERT of 2 layers x 32 with random weights that reads characters, 64 of them."""
    letters = {c: i for i, c in enumerate(["[PAD]", "[UNK]", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(letters), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    write_training(folder, "dense", recipe="tiny")
    return folder
