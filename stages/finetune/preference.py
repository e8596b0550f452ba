"""A generator trained on preferences: LoRA on its linear layers, any loss over ranked groups.

    DPO    Rafailov et al., Direct Preference Optimization, NeurIPS 2023
    LoRA   Hu et al., Low-Rank Adaptation of Large Language Models, ICLR 2022

The reference is the generator itself with the adapter off. ``bt`` has no reference: its score of
an answer is β·log π(answer | prompt); a scalar head is not trained here.

Trains on the groups of split train; what the trained model does on split dev is in
``training.json``. A killed training goes on from its checkpoint in ``.quarry/checkpoints``.
Under ``accelerate launch`` several processes train together (docs/scale.md).
"""

import functools
import inspect
import logging
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from stages import preference_trainer as trainer
from stages import ranks
from stages.checkpoint import CHECKPOINTS
from stages.digest import digest
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.models import TRAINING, read_training, write_training
from stages.params import Entry
from stages.preference import Group, Pairing, read_groups
from stages.preference_losses import LOSSES, WITHOUT_REFERENCE
from stages.records import RecordStore
from stages.shell import write_json
from stages.tables import read_table

log = logging.getLogger(__name__)

TARGETS = {"all": "all-linear", "q_v": ["q_proj", "v_proj"]}


class Lora(Entry):
    """The adapter."""

    r: PositiveInt = 16  # rank
    alpha: PositiveInt = 32  # the update is scaled by alpha / r
    dropout: Literal[0] = 0  # the policy and its reference differ by the adapter alone
    layers: Literal["all", "q_v"] = "all"  # linear layers that get one; never the LM head


class Params(Entry):
    """Values of a ``preference`` entry."""

    recipe: Literal["preference"]
    corpus: Literal["none"]
    pairs: str  # an entry of pairs
    index: Literal["none"]
    encoder: Literal["none"]
    model: str  # an entry of finetune: the generator to start from
    loss: Literal[tuple(LOSSES)]
    beta: PositiveFloat = 0.1  # scale of the reward: distance from the reference
    options: dict[str, float | str] = Field(default={})  # of the loss: beta_r, reduce, centre
    pairing: Pairing = "best_worst"  # which candidates of a group make a pair
    lr: PositiveFloat = 1e-6  # peak learning rate
    steps: PositiveInt  # optimiser steps
    batch: PositiveInt = 4  # groups per step
    tokens: PositiveInt = 1024  # tokens of one forward pass
    max_tokens: PositiveInt = 2048  # a prompt with its longest answer; longer groups are left out
    warmup: NonNegativeFloat = Field(default=0.1, le=1)  # share of the steps
    kind_weights: dict[str, NonNegativeFloat] = Field(default={})  # factors on weights
    lora: Lora = Lora()
    save: Literal["merged", "adapter"] = "merged"  # adapter: small, needs its base model's folder
    seed: int
    threads: PositiveInt = 1  # passes side by side; part of the result: sums differ

    @model_validator(mode="after")
    def _options_are_the_losss(self) -> "Params":
        known = list(inspect.signature(LOSSES[self.loss]).parameters)[1:]
        if unknown := sorted(set(self.options) - set(known)):
            raise ValueError(f"loss {self.loss} has no option {unknown[0]}; it has: {known}")
        return self


def train(params: Params, inputs: Inputs, out: Path) -> dict[str, float]:
    """Fill ``out`` with the trained generator; tokens per second.

    Of several processes only the first fills its ``out``.

    Raises:
        QuarryError: an input is not what it must be, or there is nothing to train on.
    """
    with ranks.together() as all_:
        return _train(params, inputs, out, all_)


def _train(params: Params, inputs: Inputs, out: Path, all_: ranks.Ranks) -> dict[str, float]:
    torch.set_num_threads(params.threads)
    transformers_logging.disable_progress_bar()
    made = _local(inputs.model)
    groups = read_groups(
        read_table(inputs.pairs, "pref_groups"), read_table(inputs.pairs, "pref_candidates")
    )
    groups = [g._replace(weight=g.weight * params.kind_weights.get(g.kind, 1.0)) for g in groups]
    model = _with_adapter(inputs.model, params)
    goal = trainer.Goal(
        functools.partial(LOSSES[params.loss], **params.options),
        params.beta, params.loss not in WITHOUT_REFERENCE, params.pairing,
    )  # fmt: skip
    began = time.perf_counter()
    with all_.first():  # the others find it in the record store
        items, too_long = _items(model, groups, inputs.model, made["fingerprint"], params)
    reference_seconds = time.perf_counter() - began
    learn = [i for i in items if i.encoded.group.split == "train"]
    dev = [i for i in items if i.encoded.group.split == "dev"]
    log.info("%d groups to train on, %d on dev, %d too long", len(learn), len(dev), too_long)

    checkpoint = CHECKPOINTS / f"{_key(params, made, groups)}.safetensors"
    began = time.perf_counter()
    cost = trainer.train(
        model, learn, goal, steps=params.steps, batch=params.batch, tokens=params.tokens,
        lr=params.lr, warmup=params.warmup, seed=params.seed, threads=params.threads,
        checkpoint=checkpoint, ranks=all_,
    )  # fmt: skip
    if all_.rank > 0:
        return cost
    seconds = time.perf_counter() - began
    quality = trainer.measure(model, dev, goal, tokens=params.tokens, threads=params.threads)
    log.info("after training, on dev: %s", quality)
    _save(model, inputs.model, out, params)
    write_training(
        out, "generator", **params.model_dump(mode="json"), base=made["fingerprint"],
        dev=quality, too_long=too_long,
    )  # fmt: skip
    checkpoint.unlink(missing_ok=True)
    return {
        "reference_seconds": round(reference_seconds, 2), "train_seconds": round(seconds, 2),
        "trained_tokens_per_second": round(cost["trained_tokens"] / seconds, 1), **cost,
    }  # fmt: skip


def _local(folder: Path) -> dict[str, Any]:
    """``training.json`` of a generator that lies here and can be trained."""
    made = read_training(folder, "generator")
    for name, is_a in (("endpoint.json", "a server"), ("adapter_config.json", "an adapter")):
        if (folder / name).exists():
            raise QuarryError(
                f"{folder} is {is_a}; a preference entry starts from a model with its own weights."
            )
    return made


def _with_adapter(folder: Path, params: Params) -> torch.nn.Module:
    """The generator with a fresh adapter, whose random half comes from the seed alone."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    lora = params.lora
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0,
        target_modules=TARGETS[lora.layers],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(params.seed)
        return get_peft_model(model, config).eval()


def _items(
    model: torch.nn.Module, groups: list[Group], folder: Path, fingerprint: str, params: Params
) -> tuple[list[trainer.Item], int]:
    """The groups with their reference log-probabilities, and how many were too long."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    encoded = trainer.encode(
        groups, Tokenizer.from_file(str(folder / "tokenizer.json")), eos=eos,
        max_tokens=min(params.max_tokens, config.max_position_embeddings),
    )  # fmt: skip
    with RecordStore() as store, model.disable_adapter():
        reference = trainer.reference_log_probs(
            model, encoded, fingerprint=fingerprint, store=store, threads=params.threads
        )
    items = [trainer.Item(*pair) for pair in zip(encoded, reference, strict=True)]
    return items, len(groups) - len(items)


def _key(params: Params, made: dict[str, Any], groups: list[Group]) -> str:
    """What a checkpoint belongs to: everything that decides the training."""
    values = params.model_dump_json(exclude={"save", "pairs", "model"})
    return digest(
        "preference", trainer.VERSION, torch.__version__, values, made["fingerprint"],
        *map(repr, groups),
    )  # fmt: skip


def _save(model: torch.nn.Module, base: Path, out: Path, params: Params) -> None:
    """The base's files around new weights; or the adapter, which names its base."""
    skip = {TRAINING}
    if params.save == "merged":
        model.merge_and_unload().save_pretrained(out)
    else:
        save_file(get_peft_model_state_dict(model), out / "adapter_model.safetensors")
        config = model.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": base.as_posix(), "inference_mode": True}
        write_json(out / "adapter_config.json", {k: _plain(v) for k, v in config.items()})
        skip.add("config.json")  # with it transformers would look for whole weights here
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in skip:
            shutil.copyfile(path, out / path.name)


def _plain(value: Any) -> Any:
    """A value as JSON has it; a set in order."""
    return sorted(value) if isinstance(value, set) else value
