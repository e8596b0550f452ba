"""The trainer on tiny random models: what it scores, accumulates, skips and resumes."""

import functools
from math import log, prod
from pathlib import Path

import pytest
import torch
from preference_fakes import EOS, byte_tokenizer, encoded, group, items, tiny_gpt2, tiny_llama

from stages import preference_trainer as trainer
from stages.errors import QuarryError
from stages.preference_losses import LOSSES, WITHOUT_REFERENCE
from stages.preference_trainer import Goal, encode, log_probs, measure, pack, reference_log_probs
from stages.records import RecordStore

GROUPS = [
    group("Q: oak? ", [" tree", " a fish", " stone"]),
    group("Q: a longer question about an elm? A:", [" a tree", " no"], weight=2.0),
    group("Q: cod? ", [" fish", " bird", " oak"], [1.0, 0.0, 0.0], weight=0.5),
]
GOAL = Goal(LOSSES["dpo"], 0.5, True, "all")
SETTINGS = {"steps": 4, "batch": 3, "tokens": 10_000, "lr": 1e-2, "warmup": 0.5, "seed": 1}


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(groups=GROUPS, *, goal: Goal = GOAL, **changes) -> torch.Tensor:
    model = tiny_llama()
    trainer.train(model, items(model, groups), goal, **SETTINGS | changes)
    return weights(model)


# -- scoring ------------------------------------------------------------------------------------


def test_a_candidate_ends_with_the_end_token_and_parts_are_tokenised_apart() -> None:
    (e,) = encoded([group("ab", ["cd", "e"], context="xy")])
    tokens = [byte_tokenizer().encode(t).ids for t in ("ab", "xy", "cd", "e")]
    assert (e.prompt, e.context, e.answers) == (
        tokens[0], tokens[1], [[*tokens[2], EOS], [*tokens[3], EOS]],
    )  # fmt: skip
    assert e.size == 2 + 2 + 3 + 2


def test_groups_that_do_not_fit_are_left_out_never_cut() -> None:
    short, long = group("ab", ["c", "d"]), group("ab", ["c", "d" * 20])
    kept = encode([long, short], byte_tokenizer(), eos=EOS, max_tokens=4)
    assert [e.group for e in kept] == [short]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_one_pass_over_a_pack_gives_what_a_row_per_candidate_gives(make) -> None:
    model = make()
    es = encoded([group("Q: oak?", [" tree", " a fish", " x"], context=" R. A:"), *GROUPS])
    with torch.inference_mode():
        packed = log_probs(model, es)
        for e, ours in zip(es, packed, strict=True):
            for k, answer in enumerate(e.answers):
                row = e.prompt + e.context + answer
                token_logps = model(torch.tensor([row])).logits[0].log_softmax(-1)
                own = [token_logps[t - 1, row[t]].item() for t in range(1, len(row))]
                stem = len(e.prompt) + len(e.context)
                assert ours.answers[k].item() == pytest.approx(sum(own[stem - 1 :]), abs=1e-4)
                context = sum(own[len(e.prompt) - 1 : stem - 1])
                assert ours.context.item() == pytest.approx(context, abs=1e-4)


def test_packs_fill_up_to_their_tokens_and_keep_long_groups_whole() -> None:
    its = items(tiny_llama(), GROUPS)
    sizes = [i.encoded.size for i in its]
    assert [len(p) for p in pack(its, sizes[0] + sizes[1])] == [2, 1]
    assert [len(p) for p in pack(its, 1)] == [1, 1, 1]
    assert list(pack([], 10)) == []


@pytest.mark.parametrize("name", sorted(set(LOSSES) - WITHOUT_REFERENCE))
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_before_the_first_step_a_loss_knows_only_the_groups_size(name: str, make) -> None:
    """ln 2 per pair, ln m, ln m!: anything else is a wrong template, dropout or end token."""
    model, m = make(), 3
    its = items(model, [group("Q:", ["a", "b b", "ccc"])])
    quality = measure(model, its, Goal(LOSSES[name], 0.1, True, "all"), tokens=100)
    gains = [2**1.0 - 1, 2**0.5 - 1, 2**0.0 - 1]
    discounts = [1 / log(1 + i, 2) for i in (1, 2, 3)]
    dcg = sum(
        (gains[i] - gains[j]) * (discounts[i] - discounts[j])
        for i in range(m)
        for j in range(i + 1, m)
    )
    expected = {
        "larpo_contrastive": log(m), "larpo_listmle": log(prod(range(1, m + 1))),
        "larpo_lambdarank": 3 * log(2), "lambda_dcg": dcg * log(2),
    }  # fmt: skip
    assert quality["loss"] == pytest.approx(expected.get(name, log(2)), abs=1e-3)
    assert quality["kl"] == pytest.approx(0, abs=1e-2)


def test_dropout_of_a_model_is_off_in_policy_and_reference(tmp_path: Path) -> None:
    model = tiny_gpt2().train()
    assert model.transformer.drop.p > 0
    with RecordStore(tmp_path) as store:
        reference = reference_log_probs(model, encoded(GROUPS), fingerprint="f", store=store)
    for ours, item in zip(reference, items(tiny_gpt2(), GROUPS), strict=True):
        assert torch.equal(ours.answers, item.reference.answers)
    its = items(tiny_gpt2(), GROUPS)
    assert measure(model.train(), its, GOAL, tokens=1)["kl"] == 0
    plain = tiny_gpt2()
    trainer.train(model.train(), its, GOAL, **SETTINGS)
    trainer.train(plain, its, GOAL, **SETTINGS)
    assert torch.equal(weights(model), weights(plain))


# -- the reference's cache ----------------------------------------------------------------------


def test_the_reference_is_computed_once_and_a_changed_template_misses(tmp_path: Path) -> None:
    model, calls = tiny_llama(), []
    forward = model.forward
    model.forward = lambda **kwargs: calls.append(1) or forward(**kwargs)

    def ask(groups: list, fingerprint: str = "f") -> list:
        calls.clear()
        with RecordStore(tmp_path) as store:
            return reference_log_probs(model, encoded(groups), fingerprint=fingerprint, store=store)

    first = ask(GROUPS)
    assert len(calls) == len(GROUPS)
    again = ask(GROUPS[::-1])[::-1]
    assert not calls
    for a, b, item in zip(first, again, items(tiny_llama(), GROUPS), strict=True):
        assert torch.equal(a.answers, b.answers)
        assert torch.equal(a.answers, item.reference.answers)
    ask([g._replace(prompt=g.prompt.replace("Q", "q")) for g in GROUPS])
    assert len(calls) == len(GROUPS)
    ask(GROUPS, fingerprint="other weights")
    assert len(calls) == len(GROUPS)


# -- training -----------------------------------------------------------------------------------


def test_many_packs_train_like_one_though_weights_differ() -> None:
    one, many = trained(tokens=10_000), trained(tokens=1)
    assert not torch.equal(trained(steps=1), weights(tiny_llama()))
    torch.testing.assert_close(one, many, rtol=0, atol=2e-5)


def test_passes_side_by_side_train_like_one_after_another_and_always_alike() -> None:
    alone, beside = trained(batch=4), [trained(batch=4, threads=3) for _ in range(2)]
    torch.testing.assert_close(beside[0], alone, rtol=0, atol=2e-5)
    assert torch.equal(*beside)
    assert torch.equal(trained(batch=1, threads=3), trained(batch=1)), "a thread without a group"


def test_what_is_measured_side_by_side_is_what_is_measured(tmp_path: Path) -> None:
    its = items(tiny_llama(), GROUPS)
    assert measure(tiny_llama(), its, GOAL, tokens=1, threads=3) == measure(
        tiny_llama(), its, GOAL, tokens=1
    )
    with RecordStore(tmp_path) as store:
        side_by_side = reference_log_probs(
            tiny_llama(), encoded(GROUPS), fingerprint="f", store=store, threads=3
        )
    for ours, item in zip(side_by_side, its, strict=True):
        assert torch.equal(ours.answers, item.reference.answers)


def test_a_kind_of_weight_zero_is_as_if_it_was_not_there() -> None:
    mixed = [*GROUPS, group("Z", [" z", " y"], weight=0.0), group("A", [" z", " y"], weight=0.0)]
    torch.testing.assert_close(trained(mixed), trained(GROUPS), rtol=0, atol=0)


def test_the_order_of_groups_and_candidates_does_not_matter() -> None:
    model = tiny_llama()
    its = items(model, GROUPS)
    straight = measure(model, its, GOAL, tokens=1)
    assert measure(model, its[::-1], GOAL, tokens=10_000) == straight
    torch.testing.assert_close(trained(GROUPS[::-1]), trained(GROUPS), rtol=0, atol=0)


def test_every_epoch_reads_every_group_once_in_an_order_of_its_own() -> None:
    its = items(tiny_llama(), [group(f"q{i}", ["a", "b"]) for i in range(6)])
    stream = trainer._order(its, seed=3, skip=0)
    epochs = [[next(stream).encoded.group.prompt for _ in its] for _ in range(3)]
    assert all(sorted(e) == [f"q{i}" for i in range(6)] for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = trainer._order(its, seed=3, skip=8)
    assert [next(resumed).encoded.group.prompt for _ in range(4)] == epochs[1][2:]


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [trainer._schedule(step, 10, 0.2) for step in range(10)]
    assert rates[:3] == [1 / 2, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 8) and rates[2:] == sorted(rates[2:], reverse=True)
    assert trainer._schedule(0, 1, 0.0) == 1.0


def test_sixty_steps_learn_sixteen_groups_by_heart() -> None:
    texts = [" tree", " fish", " bird", " stone"]
    groups = [group(f"Q{i}:", [texts[i % 4], texts[(i + 1) % 4]]) for i in range(16)]
    model = tiny_llama()
    its = items(model, groups)
    assert measure(model, its, GOAL, tokens=1000)["accuracy"] < 1
    trainer.train(model, its, GOAL, **SETTINGS | {"steps": 60, "batch": 16, "lr": 3e-3})
    after = measure(model, its, GOAL, tokens=1000)
    assert after["accuracy"] == 1.0 and after["margin"] > 0.5
    assert after["chosen"] > after["rejected"]


def test_nothing_to_train_on_is_an_error_and_nothing_to_measure_is_not() -> None:
    model = tiny_llama()
    with pytest.raises(QuarryError, match="no group of weight above 0"):
        trainer.train(model, [], GOAL, **SETTINGS)
    assert measure(model, [], GOAL, tokens=10) == {"groups": 0}


# -- checkpoints --------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_and_ends_byte_equal(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 2)
    path = tmp_path / "c.safetensors"
    undisturbed = trained(steps=7)

    done = []
    step = torch.optim.AdamW.step

    def dies(self, *args, **kwargs):
        if len(done) == 5:
            raise Killed
        done.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", dies)
    with pytest.raises(Killed):
        trained(steps=7, checkpoint=path)
    done.clear()
    assert torch.equal(trained(steps=7, checkpoint=path), undisturbed)
    assert len(done) == 7 - 4, "steps 0 to 3 were in the checkpoint"
    done.clear()
    assert torch.equal(trained(steps=7, checkpoint=path), undisturbed)
    assert not done, "a finished training has nothing left to do"


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(QuarryError, match=r"damaged checkpoint.*Delete it"):
        trained(checkpoint=path)


def test_every_loss_trains(tmp_path: Path) -> None:
    start = weights(tiny_llama())
    for name, loss in LOSSES.items():
        goal = Goal(functools.partial(loss), 0.1, name not in WITHOUT_REFERENCE, "all")
        strict = [group("Q:", [" a", " bb", " c"]), group("R:", [" a", " b"])]
        moved = trained(strict, goal=goal, steps=1)
        assert moved.isfinite().all() and not torch.equal(moved, start), name
