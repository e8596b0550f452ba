"""The same batch through TRL: equal losses, equal gradients."""

import pytest
import torch
from preference_fakes import byte_tokenizer, group, items, tiny_gpt2

from stages.preference import trl_rows
from stages.preference_losses import LOSSES
from stages.preference_trainer import Goal, build_scores, log_probs

trl = pytest.importorskip("trl", reason="TRL is the oracle: pip install trl")
datasets = pytest.importorskip("datasets")

BETA = 0.3
GROUPS = [
    group(f"Question {i}:", [f" answer {'x' * (i % 4)}", f" other {'y' * (i % 3)}"])
    for i in range(8)
]


def fast_tokenizer():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<eos>", pad_token="<eos>"
    )


def arguments(config, folder, **values):
    return config(
        output_dir=str(folder), per_device_train_batch_size=len(GROUPS), report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_dropout=True,
        max_length=200, remove_unused_columns=False, **values,
    )  # fmt: skip


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def compare(ours: tuple, theirs: tuple) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in ours[1].items():
        torch.testing.assert_close(grad, theirs[1][name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(("name", "loss_type"), [("dpo", "sigmoid"), ("dpo_norm", "sigmoid_norm")])
def test_dpo_losses_and_gradients_are_those_of_trl(name: str, loss_type: str, tmp_path) -> None:
    policy = tiny_gpt2(seed=1)  # not the reference: its log-ratios are far from 0
    its = items(tiny_gpt2(seed=0), GROUPS)
    goal = Goal(LOSSES[name], BETA, True, "best_worst")
    logps = log_probs(policy, [i.encoded for i in its])
    scores = build_scores(its, logps, goal)
    assert scores.g.abs().mean() > 0.5
    loss = goal.loss(scores).mean()
    loss.backward()
    ours = loss.item(), gradients(policy)

    model = tiny_gpt2(seed=1)
    trainer = trl.DPOTrainer(
        model=model, ref_model=tiny_gpt2(seed=0),
        args=arguments(trl.DPOConfig, tmp_path, beta=BETA, loss_type=[loss_type]),
        train_dataset=datasets.Dataset.from_list(trl_rows(GROUPS, "best_worst")),
        processing_class=fast_tokenizer(),
    )  # fmt: skip
    assert len(trainer.train_dataset) == len(GROUPS), "TRL dropped a row"
    (batch,) = list(trainer.get_train_dataloader())
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    compare(ours, (loss.item(), gradients(model)))


@pytest.mark.parametrize("centre", [0.0, 0.01])
def test_bradley_terry_is_that_of_trls_reward_trainer(centre: float, tmp_path) -> None:
    """Same scalar scores, same loss and gradients: TRL's head on TRL's model gives the scores."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=256, num_labels=1,
        pad_token_id=256, eos_token_id=256, initializer_range=0.3,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config)
    trainer = trl.RewardTrainer(
        model=model,
        args=arguments(
            trl.RewardConfig, tmp_path, center_rewards_coefficient=centre or None
        ),
        train_dataset=datasets.Dataset.from_list(trl_rows(GROUPS, "best_worst")),
        processing_class=fast_tokenizer(),
    )  # fmt: skip
    (batch,) = list(trainer.get_train_dataloader())
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    theirs = loss.item(), gradients(model)

    model.zero_grad()
    rewards = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    its = items(tiny_gpt2(), GROUPS)
    goal = Goal(LOSSES["bt"], 1.0, False, "best_worst")
    scores = build_scores(its, log_probs(tiny_gpt2(), [i.encoded for i in its]), goal)
    chosen, rejected = rewards.chunk(2)
    ours = LOSSES["bt"](scores._replace(g=torch.stack([chosen, rejected], 1)), centre=centre).mean()
    ours.backward()
    compare((ours.item(), gradients(model)), theirs)
