"""The aligner recipe on a tiny random encoder: it learns, it seals, it goes on after a kill."""

from pathlib import Path

import pytest
import torch
from encoders import tiny_bert

from stages.checkpoint import CHECKPOINTS
from stages.digest import folder_digest
from stages.effects import dumps
from stages.encoder import open_encoder
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.finetune import aligner as recipe
from stages.models import read_training
from stages.tables import table, write_table

torch.set_num_threads(1)
WORDS = ["oak", "elm", "cod", "eel", "iron", "gold", "rain", "snow", "harp", "drum"]
GREEK = ["alpha", "beta", "gamma", "delta", "zeta", "eta", "iota", "kappa", "rho", "tau"]
VALUES = {
    "recipe": "aligner", "corpus": "none", "pairs": "p", "index": "none", "encoder": "none",
    "model": "m", "steps": 60, "questions": 4, "negatives": 3, "lr": 3e-3, "tau": 0.1, "seed": 3,
    "query_tokens": 32, "max_tokens": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_checkout_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUARRY_RECORDS", raising=False)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Who asks for "alpha" wants "<oak; is; tree>"; dev asks the same in other words."""
    folder, base = tmp_path / "pairs", tmp_path / "base"
    folder.mkdir()
    base.mkdir()
    write_pairs(folder, ("train", "dev"))
    return Inputs(pairs=folder, model=tiny_bert(base))


def write_pairs(folder: Path, splits: tuple[str, ...]) -> None:
    groups, candidates = [], []
    for split in splits:
        for n, (greek, word) in enumerate(zip(GREEK, WORDS, strict=True)):
            gid, prompt = f"{split}-{n}", f"{greek}?" if split == "train" else f"is it {greek}?"
            groups.append({
                "group_id": gid, "method": "kirag", "kind": "gold", "qid": gid, "split": split,
                "prompt": prompt, "context": None, "docids": [], "retrieval_sign": 0,
                "iteration": 0, "weight": 1.0, "meta": dumps({"step": 0}),
            })  # fmt: skip
            candidates += [
                {"group_id": gid, "cand_id": w, "text": f"<{w}; is; thing>",
                 "score": float(w == word), "rank": int(w != word), "label": 1 if w == word else -1,
                 "n_trials": 0, "n_success": 0, "temperature": -1.0, "gen_iteration": 0,
                 "model": "", "n_tokens": 0}
                for w in WORDS
            ]  # fmt: skip
    write_table(table("pref_groups", groups), folder, "pref_groups")
    write_table(table("pref_candidates", candidates), folder, "pref_candidates")


def train(inputs: Inputs, name: str, **changes) -> Path:
    out = Path(name)
    out.mkdir()
    recipe.train(recipe.Params.model_validate(VALUES | changes), inputs, out)
    return out


def test_training_brings_a_question_to_its_next_fact_and_seals_an_encoder(inputs: Inputs) -> None:
    out = train(inputs, "out")
    encoder = open_encoder(out, max_tokens=32)
    queries = encoder.encode([f"{g}?" for g in GREEK], "query")
    facts = encoder.encode([f"<{w}; is; thing>" for w in WORDS], "passage")
    assert ((queries @ facts.T).argmax(1) == range(10)).mean() >= 0.9
    made = read_training(out, "dense")["made_by"]
    assert made["train_samples"] == 10
    dev = made["dev"]["all"]
    assert dev["samples"] == dev["questions"] == 10
    assert dev["after"]["MRR"] > dev["before"]["MRR"] + 0.2
    low, high = dev["difference"]["interval"]
    assert 0 < low <= dev["difference"]["MRR"] <= high
    names = {p.name for p in out.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= names
    assert not [n for n in names if Path(n).suffix in {".bin", ".pt", ".pkl"}]


def test_equal_inputs_make_equal_bytes_and_another_seed_other_bytes(inputs: Inputs) -> None:
    first = folder_digest(train(inputs, "one", steps=3))
    assert folder_digest(train(inputs, "two", steps=3)) == first
    assert folder_digest(train(inputs, "three", steps=3, seed=4)) != first


def test_a_killed_training_goes_on_from_its_checkpoint_to_equal_bytes(
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
    other = folder_digest(train(inputs, "other", steps=12, tau=0.2))
    assert other != whole and len(rates) == 8 + 12, "another training's checkpoint is not taken"
    assert folder_digest(train(inputs, "resumed", steps=12)) == whole
    assert len(rates) == 8 + 12 + (12 - 5)
    assert rates[-7:] == rates[8 + 5 : 8 + 12], "the rate goes on where it was"
    assert not list(CHECKPOINTS.iterdir())


def test_a_training_killed_after_its_last_step_has_no_step_left(
    inputs: Inputs, monkeypatch
) -> None:
    whole = folder_digest(train(inputs, "whole", steps=3))

    def dies(*args: object, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recipe, "reciprocal_ranks", dies)
        train(inputs, "killed", steps=3)
    monkeypatch.setattr(recipe, "step_loss", dies)
    assert folder_digest(train(inputs, "resumed", steps=3)) == whole


def test_pairs_without_a_split_to_train_on_are_an_error_without_dev_there_is_no_measure(
    inputs: Inputs,
) -> None:
    write_pairs(inputs.pairs, ("dev",))
    with pytest.raises(QuarryError, match="no sample of split train"):
        train(inputs, "out")
    write_pairs(inputs.pairs, ("train",))
    out = train(inputs, "again", steps=1)
    dev = read_training(out, "dense")["made_by"]["dev"]
    assert dev["all"]["questions"] == 0 and dev["all"]["after"]["MRR"] is None
