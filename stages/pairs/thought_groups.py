"""Which of the drawn thoughts and answers make a pair: RAR²'s rules, and what they leave out.

Xu et al., EMNLP 2025 Findings (arXiv:2509.22713): a thought is chosen if the answer from it (a) and
the answer from what it finds (b) are right, else rejected; one pair a question. What is drawn from
several is drawn uniformly, by a seed. thoughts.py beside this file draws the texts.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from stages.digest import digest, uniform
from stages.effects import dumps
from stages.thoughts import PROMPT_VERSION, think_prompt

METHOD = "rar2"
Row = dict[str, Any]


class Answers(NamedTuple):
    """The answers to one prompt, and whether each is right."""

    source: str  # whose documents are shown: a thought that is chosen, or rejected
    docids: list[str]
    prompt: str
    texts: list[str]
    right: list[bool]


class Rollout(NamedTuple):
    """What was drawn for one question."""

    thoughts: list[str]
    outcomes: list[tuple[bool, bool]]  # (a, b) of each
    answers: list[Answers]


def choose_thoughts(outcomes: Sequence[tuple[bool, bool]]) -> tuple[list[int], list[int]]:
    """The thoughts with a and b, and all others."""
    chosen = [i for i, (a, b) in enumerate(outcomes) if a and b]
    return chosen, [i for i in range(len(outcomes)) if i not in chosen]


def pick(some: Sequence[int], seed: int, *of: str) -> int:
    """One of them, uniformly, by the seed and what it is for."""
    return some[int(uniform("rar2", str(seed), *of) * len(some))]


def chance_of_pair(p: float, k: int) -> float:
    """How likely k draws of success rate p hold a success and a failure: 1 - p^k - (1-p)^k."""
    return 1 - p**k - (1 - p) ** k


def pair_up(
    asked: Sequence[Row],
    rolled: dict[str, Rollout],
    *,
    seed: int,
    temperature: float,
    rejected: Literal["uniform", "near_miss"],
    most: dict[str, int],
) -> tuple[list[Row], list[Row], dict[str, Any]]:
    """Rows of both tables, and counts: outcomes of thoughts, groups kept and dropped by kind."""
    made: list[tuple[Row, list[Row]]] = []
    counts: dict[str, Counter[str]] = {"thought": Counter(), "answer": Counter()}
    outcomes: Counter[str] = Counter()
    for q in asked:
        if (one := rolled.get(q["qid"])) is None:
            continue
        outcomes.update(f"{a:d}{b:d}" for a, b in one.outcomes)
        made += _thought_group(q, one, seed, rejected, counts["thought"])
        for answers in one.answers:
            made += _answer_group(q, answers, seed, counts["answer"])
    made = cap(made, most, seed)
    for kind, count in counts.items():
        count["kept"] = sum(group["kind"] == kind for group, _ in made)
    rate = outcomes["11"] / (outcomes.total() or 1)
    k = max((len(one.outcomes) for one in rolled.values()), default=0)
    stats = {
        "outcomes": dict(sorted(outcomes.items())),  # a and b, as digits
        "by_kind": {kind: dict(count) for kind, count in counts.items()},
        "yield_expected": round(chance_of_pair(rate, k), 4),
    }
    candidates = [c | {"temperature": temperature} for _, cs in made for c in cs]
    return [group for group, _ in made], candidates, stats


def cap(
    made: Sequence[tuple[Row, list[Row]]], caps: dict[str, int], seed: int
) -> list[tuple[Row, list[Row]]]:  # fmt: skip
    """Of the train groups of each kind as many as may be, by a seeded draw; dev ones stay."""
    left = dict(caps)
    kept = set()
    for group, _ in sorted(made, key=lambda m: uniform(str(seed), m[0]["group_id"])):
        train = group["split"] == "train"
        if not train or left[group["kind"]]:
            kept.add(group["group_id"])
            left[group["kind"]] -= train
    return [m for m in made if m[0]["group_id"] in kept]


def _thought_group(
    q: Row, one: Rollout, seed: int, prefer: str, count: Counter[str]
) -> Iterator[tuple[Row, list[Row]]]:  # fmt: skip
    """At most one group of one chosen and one rejected thought."""
    count["thoughts"] += len(one.thoughts)
    count["empty"] += one.thoughts.count("")
    chosen, rejected = (
        [i for i in some if one.thoughts[i]] for some in choose_thoughts(one.outcomes)
    )
    good = {one.thoughts[i] for i in chosen}
    rejected = [i for i in rejected if one.thoughts[i] not in good]  # drawn twice, right once
    near = [i for i in rejected if any(one.outcomes[i])]
    if prefer == "near_miss" and near:
        rejected = near
    if not chosen or not rejected:
        count["dropped_none_rejected" if chosen else "dropped_none_chosen"] += 1
        return
    best, worst = (
        pick(some, seed, q["qid"], "thought", name)
        for name, some in (("chosen", chosen), ("rejected", rejected))
    )
    prompt = think_prompt(q["text"], q["options"] or ())
    meta = {"outcome": [*map(int, one.outcomes[worst])], "samples": [best, worst]}
    group = _group_row(q, "thought", prompt, [], meta)
    yield (
        group,
        [_candidate_row(group, one.thoughts[at], label) for at, label in ((best, 1), (worst, -1))],
    )


def _answer_group(
    q: Row, answers: Answers, seed: int, count: Counter[str]
) -> Iterator[tuple[Row, list[Row]]]:  # fmt: skip
    """At most one group of one right and one wrong answer to the prompt."""
    said = [(text.strip(), right) for text, right in zip(answers.texts, answers.right, strict=True)]
    right = sorted({text for text, good in said if good})
    wrong = sorted({text for text, good in said if text and not good})
    count["answers"] += len(said)
    count["right"] += sum(answers.right)
    if not right or not wrong:
        count["dropped_none_wrong" if right else "dropped_none_right"] += 1
        return
    count[f"documents_of_{answers.source}"] += 1
    group = _group_row(q, "answer", answers.prompt, answers.docids, {"documents": answers.source})
    names = (("right", right, 1), ("wrong", wrong, -1))
    yield group, [
        _candidate_row(group, texts[pick(range(len(texts)), seed, group["group_id"], name)], label)
        for name, texts, label in names
    ]  # fmt: skip


def _group_row(
    q: Row, kind: str, prompt: str, docids: list[str], meta: dict[str, Any]
) -> Row:  # fmt: skip
    return {
        "group_id": digest("pairs", METHOD, kind, q["qid"], "0", prompt), "method": METHOD,
        "kind": kind, "qid": q["qid"], "split": q["split"], "prompt": prompt, "context": None,
        "docids": docids, "retrieval_sign": 0, "iteration": 0, "weight": 1.0,
        "meta": dumps(meta | {"prompt_version": PROMPT_VERSION}),
    }  # fmt: skip


def _candidate_row(group: Row, text: str, label: int) -> Row:
    """A text that may follow the prompt, its leading blank included."""
    return {
        "group_id": group["group_id"], "cand_id": digest("cand", f" {text}"), "text": f" {text}",
        "score": float(label > 0), "rank": int(label < 0), "label": label, "n_trials": 0,
        "n_success": 0, "temperature": 0.0, "gen_iteration": 0, "model": "", "n_tokens": 0,
    }  # fmt: skip
