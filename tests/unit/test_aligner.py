"""The aligner's loss by hand, what a step draws, and what the measure says."""

import json
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.errors import QuarryError
from stages.finetune import aligner
from stages.finetune.aligner import (
    Sample,
    compare,
    draw_epoch,
    draw_steps,
    info_nce,
    make_batch,
    read_samples,
)  # fmt: skip
from stages.tables import table, write_table

SCORES = torch.tensor([[0.90, 0.88, 0.70, 0.60, 0.55, 0.50], [0.50, 0.52, 0.40, 0.85, 0.86, 0.30]],
                      dtype=torch.float64)  # fmt: skip
LABELS = torch.tensor([0, 3])


def loss(**how) -> list[float]:
    return info_nce(SCORES, LABELS, **how).tolist()


def test_the_loss_is_the_cards() -> None:
    assert loss(tau=0.01) == pytest.approx([0.126928, 1.313262], abs=1e-6)
    # In the first row all but the runner-up are 20 and more below: log(1 + exp(-2)).
    assert loss(tau=0.01)[0] == pytest.approx(log(1 + exp(-0.02 / 0.01)), abs=1e-6)
    assert sum(loss(tau=0.01)) / 2 == pytest.approx(0.720095, abs=1e-6)
    assert sum(loss(tau=1.0)) / 2 == pytest.approx(1.564365, abs=1e-6)
    equal = info_nce(torch.zeros(1, 6), torch.tensor([2]), tau=0.01)
    assert equal.item() == pytest.approx(log(6)) == pytest.approx(1.791759, abs=1e-6)


def test_a_hidden_column_is_not_there() -> None:
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[1, 4] = True  # the one that was better
    kept = [i for i in range(6) if i != 4]
    alone = info_nce(SCORES[1:, kept], LABELS[1:], tau=0.01)
    assert info_nce(SCORES, LABELS, tau=0.01, hidden=hidden).tolist() == [loss(tau=0.01)[0], *alone]
    scores = SCORES.clone().requires_grad_()
    info_nce(scores, LABELS, tau=0.01, hidden=hidden).sum().backward()
    assert scores.grad[1, 4] == 0 and torch.isfinite(scores.grad).all()


def samples(n_questions: int, n_samples: int = 3) -> list[Sample]:
    return [
        Sample(f"g{q}-{k}", f"q{q}", "train", k, f"ask {q} {k}", f"next {q} {k}",
               tuple(f"other {q} {i}" for i in range(9)))
        for q in range(n_questions)
        for k in range(n_samples)
    ]  # fmt: skip


def test_an_epoch_has_every_question_once_with_at_most_two_samples_and_each_epoch_others() -> None:
    everything = samples(10)
    epoch = draw_epoch(everything, 0, questions=4, most=2, seed=1)
    assert [len({s.qid for s in step}) for step in epoch] == [4, 4, 2]
    assert [len(step) for step in epoch] == [8, 8, 4]
    flat = [s for step in epoch for s in step]
    assert len({s.group_id for s in flat}) == 20
    assert epoch == draw_epoch(everything[::-1], 0, questions=4, most=2, seed=1)
    for another in ({"epoch": 1, "seed": 1}, {"epoch": 0, "seed": 2}):
        other = draw_epoch(everything, questions=4, most=2, **another)
        assert {s.group_id for step in other for s in step} != {s.group_id for s in flat}
    several = [draw_epoch(everything, e, questions=4, most=2, seed=1) for e in range(20)]
    assert {s.group_id for e in several for step in e for s in step} == {
        s.group_id for s in everything
    }


def test_steps_run_over_epochs() -> None:
    steps = draw_steps(samples(3), questions=2, most=2, seed=1)
    drawn = [next(steps) for _ in range(5)]
    assert [epoch for epoch, _ in drawn] == [0, 0, 1, 1, 2]
    how = {"questions": 2, "most": 2, "seed": 1}
    assert [part for _, part in drawn[2:4]] == draw_epoch(samples(3), 1, **how)


def test_a_batch_has_each_fact_once_and_hides_the_other_next_facts_of_a_question() -> None:
    a, b, _ = samples(1)
    other = Sample("g1", "q1", "train", 0, "ask 1", "next 1", ("next 0 1", "other 0 1", "x"))
    nexts = {"q0": {"next 0 0", "next 0 1", "next 0 2"}, "q1": {"next 1"}}
    batch = make_batch([a, b, other], nexts, 0, negatives=3, seed=1)
    assert len(set(batch.facts)) == len(batch.facts)
    assert [batch.facts[i] for i in batch.labels] == ["next 0 0", "next 0 1", "next 1"]
    assert batch.queries == ["ask 0 0", "ask 0 1", "ask 1"]
    hidden = [{t for t, h in zip(batch.facts, row, strict=True) if h} for row in batch.hidden]
    assert hidden == [{"next 0 1"}, {"next 0 0"}, set()]
    drawn = [t for t in batch.facts if t.startswith("other 0")]
    assert 3 <= len(drawn) <= 6 + 1, "three of each sample, of its own group"
    again = make_batch([a], nexts, 0, negatives=7, seed=1)
    assert len(again.facts) == 8
    assert (
        make_batch([a], nexts, 1, negatives=3, seed=1).facts
        != make_batch([a], nexts, 0, negatives=3, seed=1).facts
    )
    few = make_batch([other], nexts, 0, negatives=7, seed=1)
    assert set(few.facts) == {"next 1", *other.others}, "fewer where there are fewer"


def test_the_measure_is_a_mean_over_questions_with_its_interval() -> None:
    """q0 has two samples (1/2 and 1), q1 one (1/4): (3/4 + 1/4) / 2."""
    dev = [*samples(1, 2), samples(2, 1)[1]]
    before, after = np.array([1 / 2, 1, 1 / 4]), np.array([1, 1, 1 / 2])
    said = compare(dev, before, after, seed=1)
    assert said["all"]["samples"] == 3 and said["all"]["questions"] == 2
    assert said["all"]["before"]["MRR"] == (3 / 4 + 1 / 4) / 2
    assert said["all"]["after"]["MRR"] == (1 + 1 / 2) / 2
    assert said["all"]["difference"] == {"MRR": 0.25, "interval": [0.25, 0.25]}
    low, high = said["all"]["before"]["interval"]
    assert (low, high) == (0.25, 0.75), "of two questions: either twice"
    assert said["known_0"]["questions"] == 2 and said["known_1"]["questions"] == 1
    assert said["known_1"]["after"] == {"MRR": 1.0, "interval": None}
    nothing = compare([], np.empty(0), np.empty(0), seed=1)["all"]
    unknown = {"MRR": None, "interval": None}
    assert nothing == {
        "samples": 0, "questions": 0, "before": unknown, "after": unknown, "difference": unknown,
    }  # fmt: skip


def pairs(folder: Path, labels: list[int], method: str = "kirag") -> Path:
    group = {
        "group_id": "g", "method": method, "kind": "gold", "qid": "q", "split": "train",
        "prompt": "p", "context": None, "docids": [], "retrieval_sign": 0, "iteration": 0,
        "weight": 1.0, "meta": json.dumps({"step": 1}),
    }  # fmt: skip
    candidates = [
        {"group_id": "g", "cand_id": str(i), "text": f"t{i}", "score": float(label > 0),
         "rank": int(label < 0), "label": label, "n_trials": 0, "n_success": 0,
         "temperature": -1.0, "gen_iteration": 0, "model": "", "n_tokens": 0}
        for i, label in enumerate(labels)
    ]  # fmt: skip
    write_table(table("pref_groups", [group]), folder, "pref_groups")
    write_table(table("pref_candidates", candidates), folder, "pref_candidates")
    return folder


def test_samples_are_groups_with_one_chosen_fact(tmp_path: Path) -> None:
    (sample,) = read_samples(pairs(tmp_path, [-1, 1, -1]))
    assert sample == Sample("g", "q", "train", 1, "p", "t1", ("t0", "t2"))
    for labels, method in (([1, 1, -1], "kirag"), ([1], "kirag"), ([-1, -1], "kirag"),
                           ([1, -1], "dpo")):  # fmt: skip
        with pytest.raises(QuarryError, match="recipe chains"):
            read_samples(pairs(tmp_path, labels, method))


def test_equal_scores_count_against_the_next_fact(tmp_path: Path, monkeypatch) -> None:
    """Cosines .9 (next), .9, .2 and .9, .95, .2: ranks 2 and 2; alone at the top: 1."""

    class Encoder:
        def encode(self, texts, role):
            return np.array([[1.0, 0.0]] * len(texts), dtype=np.float32)

    cosines = {"n": 0.9, "same": 0.9, "low": 0.2, "high": 0.95}
    monkeypatch.setattr(aligner, "open_encoder", lambda folder, **how: Encoder())
    monkeypatch.setattr(
        aligner, "embed", lambda encoder, ids, texts, store: np.array(
            [[cosines[t], 0.0] for t in texts], dtype=np.float32
        ),
    )  # fmt: skip
    dev = [
        Sample("a", "q", "dev", 0, "x", "n", ("same", "low")),
        Sample("b", "q", "dev", 0, "x", "n", ("high", "low")),
        Sample("c", "q", "dev", 0, "x", "n", ("low",)),
    ]
    params = aligner.Params.model_validate({
        "recipe": "aligner", "corpus": "none", "pairs": "p", "index": "none", "encoder": "none",
        "model": "m", "steps": 1, "seed": 1,
    })  # fmt: skip
    ranks = aligner.reciprocal_ranks(tmp_path, dev, params, None)
    assert ranks.tolist() == [1 / 2, 1 / 2, 1.0]
