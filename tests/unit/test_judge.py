"""RFM-RAG's judge: its loss and threshold by hand, what it reads, that it learns and repeats."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from stages import checkpoint
from stages import judge as judges
from stages.digest import digest, folder_digest
from stages.errors import QuarryError
from stages.finetune import Inputs
from stages.finetune import calibration as cal
from stages.finetune import judge as recipe
from stages.finetune.judge_pools import rounds_of
from stages.judge import Reader, open_judge, read_features, read_threshold, without_features
from stages.models import write_training
from stages.preference import dense_ranks
from stages.tables import table, write_table

# -- the loss (check 6) and the threshold (check 7) -------------------------------------------

P, Y = np.array([0.9, 0.7, 0.6, 0.2]), np.array([1, 1, 0, 0])


def test_cross_entropy_by_hand_and_a_negative_counts_twice() -> None:
    losses = [-math.log(0.9), -math.log(0.7), -math.log(1 - 0.6), -math.log(1 - 0.2)]
    assert losses == pytest.approx([0.105361, 0.356675, 0.916291, 0.223144], abs=1e-6)
    assert cal.weighted_bce(P, Y) == pytest.approx(0.400367, abs=1e-6) == sum(losses) / 4
    twice = (losses[0] + losses[1] + 2 * losses[2] + 2 * losses[3]) / (1 + 1 + 2 + 2)
    assert cal.weighted_bce(P, Y, w_neg=2) == pytest.approx(twice)
    assert twice == pytest.approx(0.456817, abs=1e-6)
    logits, labels = torch.logit(torch.tensor(P)), torch.tensor(Y, dtype=torch.float64)
    assert recipe.weighted_loss(logits, labels, 2.0).item() == pytest.approx(twice)


ROUNDS = [
    cal.Rounds([0.3, 0.8, 0.85], [0, 1, 1]),
    cal.Rounds([0.6, 0.65, 0.9], [0, 0, 1]),
    cal.Rounds([0.7, 0.75, 0.8], [1, 1, 1]),
]


@pytest.mark.parametrize(
    ("tau", "stops", "f1"),
    [
        (0.5, (1, 0, 0), (1, 0, 1)),
        (0.65, (1, 1, 0), (1, 0, 1)),
        (0.7, (1, 2, 0), (1, 1, 1)),
        (0.75, (1, 2, 1), (1, 1, 1)),
        (0.8, (1, 2, 2), (1, 1, 1)),
        (0.85, (2, 2, 2), (1, 1, 1)),
    ],
)
def test_the_utility_of_a_threshold_by_hand(tau, stops, f1) -> None:
    assert cal.utility(ROUNDS, tau, price=0.05) == pytest.approx(
        sum(f1) / 3 - 0.05 * sum(stops) / 3
    )


def test_the_best_threshold_is_the_smallest_of_the_best() -> None:
    taus = (0.5, 0.65, 0.7, 0.75, 0.8, 0.85)
    tau, curve = cal.best_threshold(ROUNDS, price=0.05, taus=taus)
    assert [u for _, u in curve] == pytest.approx(
        [0.65, 0.6333, 0.95, 0.9333, 0.9167, 0.9], abs=1e-4
    )
    assert tau == 0.7, "and the curve is not monotone"
    assert cal.best_threshold(ROUNDS, price=0.05)[0] == 0.66, "on the grid: the first above 0.65"
    assert cal.best_threshold([], price=0.05) == (0.5, [])
    same = [cal.Rounds([0.2, 0.4], [1, 1])]
    assert cal.best_threshold(same, price=0.0)[0] == 0.0


# -- measures ---------------------------------------------------------------------------------


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = random.Random(2)
    for _ in range(50):
        s = [rng.randint(0, 5) / 5 for _ in range(12)]
        y = [rng.choice([1, -1]) for _ in range(11)] + [1]
        pairs = [(a, b) for a, i in zip(s, y, strict=True) if i > 0
                 for b, j in zip(s, y, strict=True) if j < 0]  # fmt: skip
        wins = sum((a > b) + (a == b) / 2 for a, b in pairs)
        expected = wins / len(pairs) if pairs else None
        assert cal.auc(s, y) == (pytest.approx(expected) if pairs else None)
    assert cal.auc([1.0, 2.0], [1, 1]) is None


def test_an_interval_holds_the_value_and_needs_both_labels() -> None:
    s, y = np.linspace(0, 1, 40), [1, -1, 1, 1, -1] * 8
    groups = [str(i // 2) for i in range(40)]
    lo, hi = cal.auc_interval(s, y, groups, seed=1)
    assert lo < cal.auc(s, y) < hi
    assert cal.auc_interval(s, y, groups, seed=1) == (lo, hi)
    assert cal.auc_interval(s, [1] * 40, groups, seed=1) is None


def test_calibration_error_by_hand() -> None:
    # bins: 0.95 twice, one right: |0.5 - 0.95|; 0.15 once, wrong: |0 - 0.15|
    expected = (2 * abs(0.5 - 0.95) + 1 * abs(0 - 0.15)) / 3
    assert cal.calibration_error([0.95, 0.95, 0.15], [1, -1, -1]) == pytest.approx(expected)
    assert cal.calibration_error([1.0, 0.0], [1, -1]) == 0


def test_a_temperature_makes_scores_as_sure_as_they_are_right() -> None:
    # 88 of 100 are right at |logit| = 4: sigmoid(4 / T) = 0.88
    logits, labels = [4.0] * 50 + [-4.0] * 50, [1] * 44 + [-1] * 6 + [-1] * 44 + [1] * 6
    expected = 4 / math.log(0.88 / 0.12)
    assert cal.fit_temperature(logits, labels) == pytest.approx(expected, abs=1e-3)
    assert cal.fit_temperature([1.0], [1]) == 1.0


def test_false_stops_are_insufficient_pools_from_tau_on() -> None:
    assert cal.false_stops([0.9, 0.5, 0.4, 0.9], [1, -1, -1, -1], 0.5) == 2 / 3
    assert cal.false_stops([0.9], [1], 0.5) is None


# -- what it reads ----------------------------------------------------------------------------

WORDS = ["the", "oak", "ash", "elm", "is", "in", "big", "old", "stands", "here", *".+-abcde"]


def judge_base(folder: Path, *, positions: int = 64) -> Path:
    """A BERT of 2 layers x 32 with random weights that reads words."""
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertModel(BertConfig(
            vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=positions,
        )).save_pretrained(folder)  # fmt: skip
    write_training(folder, "dense", recipe="test")
    return folder


def test_the_numbers_stand_on_the_first_line() -> None:
    text = "kappa=0.500 items=3 round=2\n+ a b\n- c"
    assert read_features(text) == ((0.5, 3 / 30, 2 / 5, 1.0), ["+ a b", "- c"])
    assert without_features(text) == "- a b\n- c"
    assert read_features("- a") == ((0.0, 0.0, 0.0, 0.0), ["- a"])
    assert read_features("") == ((0.0,) * 4, [])


def test_the_oldest_item_goes_first_and_never_one_that_is_bound(tmp_path) -> None:
    reader = Reader(judge_base(tmp_path), 16)
    text = "kappa=0.5 items=4 round=1\n+ the oak is big\n- a b c\n- d e\n+ ash"
    names = dict(enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]))

    def read(question: str, text: str) -> str:
        (one,) = reader.encode([(question, text)])
        assert one.types.count(0) == len(question.split()) + 2 and len(one.ids) <= 16
        return " ".join(names[i] for i in one.ids)

    assert read("elm", text) == "[CLS] elm [SEP] + the oak is big - d e + ash [SEP]"
    assert read("elm elm elm elm", text) == (
        "[CLS] elm elm elm elm [SEP] + the oak is big + ash [SEP]"
    )
    assert read("elm", "+ " + "a " * 40).count("a") == 11, "what is bound is cut at its end"
    assert read("", "") == "[CLS] [SEP] [SEP]"


# -- training ---------------------------------------------------------------------------------


def pools_folder(folder: Path, n: int, *, seed: int = 4, shuffled: bool = False) -> Path:
    """Questions for a tree; a pool is sufficient where it is big. Numbers say nothing."""
    rng = random.Random(seed)
    groups, candidates = [], []
    for i in range(n):
        tree, *_ = rng.sample(["oak", "ash", "elm"], 2)
        texts = [
            f"kappa=0.500 items=2 round={t}\n- the {tree} is {size}\n- a {c} stands here"
            for t, size, c in ((1, "big", "b"), (2, "old", "b"), (2, "big", "c"), (1, "old", "c"))
        ]
        labels = [1, -1, 1, -1]
        if shuffled:
            rng.shuffle(labels)
        sources = ["full+distractors", "replaced", "self", "self"]
        about = {
            digest("cand", t): (s, int(t.split("round=")[1][0]), float(label > 0))
            for t, s, label in zip(texts, sources, labels, strict=True)
        }
        split = "dev" if i % 4 == 0 else "train"
        groups.append(dict(
            group_id=f"g{i:04}", method="rfm_rag", kind="sufficiency", qid=f"q{i:04}", split=split,
            prompt=f"is the {tree} here", context=None, docids=[], retrieval_sign=0, iteration=0,
            weight=1.0, meta=json.dumps({"pools": about}),
        ))  # fmt: skip
        scores = [(1 + y) / 2 for y in labels]
        candidates += [
            dict(group_id=f"g{i:04}", cand_id=digest("cand", t), text=t, score=s, rank=r, label=y,
                 n_trials=0, n_success=0, temperature=-1.0, gen_iteration=0, model="", n_tokens=0)
            for t, s, r, y in zip(texts, scores, dense_ranks(scores), labels, strict=True)
        ]  # fmt: skip
    folder.mkdir()
    write_table(table("pref_groups", groups), folder, "pref_groups")
    write_table(table("pref_candidates", candidates), folder, "pref_candidates")
    return folder


VALUES = dict(
    recipe="judge", corpus="none", pairs="p", index="none", encoder="none", model="m", batch=16,
    lr=3e-3, head_lr=3e-3, max_tokens=48, seed=5, epochs=6,
)  # fmt: skip


def trained(folder: Path, pools: Path, base: Path, **values) -> Path:
    folder.mkdir()
    recipe.train(recipe.Params(**VALUES | values), Inputs(pairs=pools, model=base), folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(base, pools, judge)."""
    root = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "CHECKPOINTS", root / "checkpoints")
        base, pools = judge_base(root / "base"), pools_folder(root / "pools", 160)
        made = base, pools, trained(root / "out", pools, base)
        assert not list((root / "checkpoints").iterdir()), "a finished training leaves none"
        return made


def test_a_judge_learns_to_read_and_says_how_well(made) -> None:
    about = json.loads((made[2] / "training.json").read_text())
    assert about["role"] == "judge"
    found = about["made_by"]["calibration"]
    before, after = found["before"], found["after"]
    assert before["auc"] < 0.8 and after["auc"] > 0.95
    assert after["auc_same_length"] > 0.95 and after["auc_by_text"] > 0.95
    assert after["auc_of_coverage"] == 0.5, "here the numbers say nothing"
    assert after["auc_interval"][0] <= after["auc"] <= after["auc_interval"][1]
    assert after["n"] == 160 and after["questions"] == 40 and after["questions_with_rounds"] == 40
    assert found["tau"] == read_threshold(made[2]) and len(found["curve"]) == len(cal.GRID)
    sufficient, not_so = (
        ("is the oak here", "- the oak is big"),
        ("is the oak here", "- the oak is old"),
    )
    p = open_judge(made[2]).score([sufficient, not_so])
    assert p[0] > found["tau"] > p[1]


def test_labels_by_chance_teach_nothing(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINTS", tmp_path)
    pools = pools_folder(tmp_path / "pools", 400, shuffled=True)
    out = trained(tmp_path / "out", pools, made[0], epochs=2)
    after = json.loads((out / "training.json").read_text())["made_by"]["calibration"]["after"]
    assert after["auc"] == pytest.approx(0.5, abs=0.12), "the best of two epochs, on 400 pools"


def test_equal_inputs_make_equal_bytes(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINTS", tmp_path / "c")
    again = trained(tmp_path / "again", made[1], made[0])
    assert folder_digest(again) == folder_digest(made[2])


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_killed_training_goes_on_and_ends_with_equal_bytes(
    made, tmp_path, monkeypatch, killed_at
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINTS", tmp_path / "c")
    save, saves = checkpoint.save, []

    def save_and_die(*args) -> None:
        save(*args)
        saves.append(args[1])
        if len(saves) == killed_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", made[1], made[0])
    monkeypatch.setattr(checkpoint, "save", save)
    again = trained(tmp_path / "again", made[1], made[0])
    assert folder_digest(again) == folder_digest(made[2])


def test_a_score_depends_on_its_pair_alone(made) -> None:
    judge = open_judge(made[2])
    rng = random.Random(1)
    pairs = [
        ("is the elm here", "kappa=0.5 items=2 round=1\n" + "\n".join(
            "- " + " ".join(rng.choices(WORDS[:10], k=rng.randint(1, 9)))
            for _ in range(rng.randint(0, 5))))
        for _ in range(37)
    ]  # fmt: skip
    scores = judge.score(pairs)
    assert scores.dtype == np.float32 and ((scores > 0) & (scores < 1)).all()
    one_by_one = np.concatenate([judge.score([p]) for p in pairs])
    assert one_by_one.tobytes() == scores.tobytes()
    order = rng.sample(range(37), 37)
    assert judge.score([pairs[i] for i in order]).tobytes() == scores[order].tobytes()
    assert judge.score([]).shape == (0,)


def test_the_key_of_a_judge_holds_its_temperature(made, tmp_path) -> None:
    first = open_judge(made[2]).fingerprint
    assert first == open_judge(made[2]).fingerprint != open_judge(made[2], threads=2).fingerprint
    other = tmp_path / "other"
    other.mkdir()
    for path in made[2].iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    about = json.loads((other / "training.json").read_text())
    about["made_by"]["calibration"]["temperature"] += 0.1
    (other / "training.json").write_text(json.dumps(about))
    assert open_judge(other).fingerprint != first


def test_what_is_no_judge_says_so(made, tmp_path) -> None:
    with pytest.raises(QuarryError, match="is a dense model, a judge model is needed"):
        open_judge(made[0])
    write_training(made[0] / ".." / "base", "dense", recipe="test")
    bare = judge_base(tmp_path / "bare")
    write_training(bare, "judge", max_tokens=16)
    with pytest.raises(QuarryError, match="a judge without 'calibration'"):
        open_judge(bare)
    one = pools_folder(tmp_path / "one", 1)
    with pytest.raises(QuarryError, match="sufficient and insufficient pools in split train"):
        trained(tmp_path / "out", one, made[0])


def test_the_rounds_of_a_question_are_its_own_pools_in_order() -> None:
    def pool(qid: str, source: str, n_round: int, f1: float) -> recipe.Pool:
        return recipe.Pool(qid, "dev", "q", "t", 0, source, n_round, f1)

    pools = [pool("a", "self", 2, 1.0), pool("b", "self", 1, 0.5), pool("a", "self", 1, 0.0),
             pool("a", "full", 1, 1.0)]  # fmt: skip
    assert rounds_of([0.9, 0.2, 0.1, 0.7], pools) == [
        cal.Rounds([0.1, 0.9], [0.0, 1.0]), cal.Rounds([0.2], [0.5])
    ]  # fmt: skip


def test_the_rate_rises_and_falls_and_batches_hold_every_pool_once() -> None:
    rates = [recipe.rate(step, 20, 0.1) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(1 / 18)
    params = recipe.Params(**VALUES)
    batches = list(recipe.draw_batches(list(range(100, 0, -1)) * 3, 0, params))
    assert sorted(i for b in batches for i in b) == list(range(300))
    assert batches != list(recipe.draw_batches(list(range(100, 0, -1)) * 3, 1, params))
    assert judges.fixed_shape(9, 512) == (16, 12)
