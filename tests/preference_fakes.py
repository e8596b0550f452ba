"""Tiny random language models, a tokenizer of bytes, and groups of candidates to score."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from stages.models import write_training
from stages.preference import Candidate, Group, dense_ranks
from stages.preference_trainer import Encoded, Item, LogProbs, encode, log_probs

torch.set_num_threads(1)
EOS = 256


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"<eos>": EOS}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=EOS, eos_token_id=EOS, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=EOS,
        eos_token_id=EOS, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def model_folder(folder: Path, seed: int = 0) -> Path:
    """A sealed generator directory with a tiny Llama."""
    folder.mkdir(parents=True)
    tiny_llama(seed).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    write_training(folder, "generator", recipe="test")
    return folder


def group(
    prompt: str, texts: Sequence[str], scores: Sequence[float] | None = None, *, context: str = "",
    weight: float = 1.0, split: str = "train", sign: int = 0, kind: str = "response",
    group_id: str | None = None,
) -> Group:  # fmt: skip
    """A group whose texts come best first unless scores say otherwise; the best are chosen."""
    scores = scores or [float(-i) for i in range(len(texts))]
    ranks = dense_ranks(scores)
    order = sorted(range(len(texts)), key=lambda i: (ranks[i], texts[i]))
    members = tuple(
        Candidate(texts[i], texts[i], scores[i], ranks[i], 1 if ranks[i] == 0 else -1, 0, 0, True)
        for i in order
    )
    return Group(group_id or prompt, kind, split, prompt, context, sign, weight, members)


def encoded(groups: Sequence[Group], *, max_tokens: int = 250) -> list[Encoded]:
    return encode(groups, byte_tokenizer(), eos=EOS, max_tokens=max_tokens)


def items(model: torch.nn.Module, groups: Sequence[Group]) -> list[Item]:
    """Groups with this model's own log-probabilities as the reference, computed one by one."""
    with torch.inference_mode():
        return [Item(e, _plain(log_probs(model, [e])[0])) for e in encoded(groups)]


def _plain(logps: LogProbs) -> LogProbs:
    return LogProbs(logps.context.clone(), logps.answers.clone())
