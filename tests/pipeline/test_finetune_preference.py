"""The preference recipe from tables to a sealed model directory, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from preference_fakes import EOS, encoded, group, model_folder
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from stages import preference_trainer as trainer
from stages.digest import folder_digest
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.finetune import preference as recipe
from stages.lm import open_generator
from stages.models import read_training
from stages.preference import Group
from stages.tables import table, write_table

VALUES = {
    "recipe": "preference", "corpus": "none", "pairs": "p", "index": "none", "encoder": "none",
    "model": "m", "loss": "dpo", "lr": 1e-2, "steps": 12, "batch": 2, "tokens": 64,
    "max_tokens": 100, "lora": {"r": 4, "alpha": 8}, "seed": 7,
}  # fmt: skip
GROUPS = [group(f"Q{i}: ", [" yes", " no"], split="train") for i in range(4)] + [
    group("D1: ", [" yes", " no"], split="dev"),
    group("long" * 40, [" yes", " no"], split="train"),  # over max_tokens
]


@pytest.fixture(autouse=True)
def in_a_checkout_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUARRY_RECORDS", raising=False)


def write_groups(folder: Path, groups: list[Group]) -> Path:
    folder.mkdir()
    rows, candidates = [], []
    for g in groups:
        rows.append({
            "group_id": g.group_id, "method": "dpo", "kind": g.kind, "qid": g.group_id,
            "split": g.split, "prompt": g.prompt, "context": g.context, "docids": [],
            "retrieval_sign": 0, "iteration": 0, "weight": g.weight, "meta": "{}",
        })  # fmt: skip
        candidates += [
            {
                "group_id": g.group_id, "cand_id": c.cand_id, "text": c.text, "score": c.score,
                "rank": c.rank, "label": c.label, "n_trials": 0, "n_success": 0,
                "temperature": 0.8, "gen_iteration": 0, "model": "m", "n_tokens": 1,
            }
            for c in g.candidates
        ]  # fmt: skip
    write_table(table("pref_groups", rows), folder, "pref_groups")
    write_table(table("pref_candidates", candidates), folder, "pref_candidates")
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    pairs = write_groups(tmp_path / "pairs", GROUPS)
    return Inputs(pairs=pairs, model=model_folder(tmp_path / "base"))


def train(inputs: Inputs, name: str, **changes) -> Path:
    out = Path(name)
    out.mkdir()
    facts = recipe.train(recipe.Params.model_validate(VALUES | changes), inputs, out)
    assert facts["trained_tokens_per_second"] > 0
    return out


def answer_logp(folder: Path, prompt: str, text: str) -> float:
    return open_generator(folder).logprobs([prompt], [text])[0].total


def test_a_trained_generator_prefers_the_chosen_answers_and_says_so(inputs: Inputs) -> None:
    out = train(inputs, "out")
    made = read_training(out, "generator")["made_by"]
    assert made["dev"]["groups"] == 1 and made["dev"]["accuracy"] == 1.0
    assert made["too_long"] == 1 and made["loss"] == "dpo"

    def margin(folder: Path) -> float:
        return answer_logp(folder, "Q0: ", " yes") - answer_logp(folder, "Q0: ", " no")

    assert margin(out) > margin(inputs.model) + 0.5
    names = {p.name for p in out.rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= names
    assert not [n for n in names if Path(n).suffix in {".bin", ".pt", ".pkl", ".md"}]


def test_equal_inputs_make_equal_bytes_and_another_seed_other_bytes(inputs: Inputs) -> None:
    first = folder_digest(train(inputs, "one"))
    assert folder_digest(train(inputs, "two")) == first
    assert folder_digest(train(inputs, "three", seed=8)) != first


def test_a_killed_training_resumes_from_its_checkpoint_to_equal_bytes(
    inputs: Inputs, monkeypatch
) -> None:
    whole = folder_digest(train(inputs, "whole"))
    monkeypatch.setattr(trainer, "SAVE_EVERY", 5)
    done = []
    step = torch.optim.AdamW.step

    def dies(self, *args, **kwargs):
        done.append(1)
        if len(done) == 8:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(inputs, "killed")
    left = list(recipe.CHECKPOINTS.iterdir())
    assert [p.suffix for p in left] == [".safetensors"]
    assert folder_digest(train(inputs, "resumed")) == whole
    assert len(done) == 8 + (12 - 5)
    assert not list(recipe.CHECKPOINTS.iterdir())


def test_a_checkpoint_of_another_training_is_not_taken(inputs: Inputs, monkeypatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # keep it
    one = folder_digest(train(inputs, "one"))
    assert folder_digest(train(inputs, "two", beta=0.2)) != one
    assert len(list(recipe.CHECKPOINTS.iterdir())) == 2


def test_an_adapter_and_its_merged_model_are_the_same_model(inputs: Inputs) -> None:
    merged, adapter = train(inputs, "merged"), train(inputs, "adapter", save="adapter")
    names = {p.name for p in adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    one, two, base = (answer_logp(f, "Q0: ", " yes") for f in (merged, adapter, inputs.model))
    assert one == pytest.approx(two, abs=1e-4) and abs(one - base) > 0.1
    again = train(inputs, "again", save="adapter")
    assert folder_digest(again) == folder_digest(adapter), "LoRA's targets are a set: order them"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])


def test_training_scores_an_answer_as_the_generator_that_serves_it(inputs: Inputs) -> None:
    (e,) = encoded([group("Question: oak?\nAnswer:", [" tree", " a fish"])])
    model = AutoModelForCausalLM.from_pretrained(inputs.model).eval()
    with torch.inference_mode():
        (ours,) = trainer.log_probs(model, [e])
    for k, text in enumerate([" tree", " a fish"]):
        ids = torch.tensor([[*e.prompt, *e.answers[k]]])
        with torch.inference_mode():
            end = model(ids).logits[0, -2].log_softmax(-1)[EOS].item()
        served = answer_logp(inputs.model, "Question: oak?\nAnswer:", text)
        assert ours.answers[k].item() == pytest.approx(served + end, abs=1e-4)


def test_an_option_that_the_loss_has_not_is_an_error() -> None:
    with pytest.raises(ValidationError, match="loss dpo has no option beta_r"):
        recipe.Params.model_validate(VALUES | {"options": {"beta_r": 0.1}})
    rpo = {"loss": "rpo_retrieval", "options": {"beta_r": 0.2}}
    assert recipe.Params.model_validate(VALUES | rpo).options == {"beta_r": 0.2}


def test_a_server_or_an_adapter_cannot_be_trained_further(inputs: Inputs) -> None:
    (inputs.model / "adapter_config.json").write_text("{}")
    with pytest.raises(QuarryError, match="is an adapter; a preference entry starts from"):
        train(inputs, "out")
    assert not list(Path("out").iterdir())


def test_pairs_without_a_train_group_are_an_error(inputs: Inputs, tmp_path: Path) -> None:
    pairs = write_groups(tmp_path / "dev-only", [g for g in GROUPS if g.split == "dev"])
    with pytest.raises(QuarryError, match="no group of weight above 0 in split train"):
        train(inputs._replace(pairs=pairs), "out")
