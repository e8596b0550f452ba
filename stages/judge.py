"""The R-Feedback judge: how likely it is that a pool of evidence answers a question.

The second model of RFM-RAG (Li et al., arXiv:2508.17862), whose architecture we could not read:
ours is a cross-encoder. A BERT-like encoder reads question and evidence together; the mean of its
token vectors, and the numbers of the pool (coverage, items, round), go through two layers to a
logit; divided by the temperature of ``training.json`` it is a probability.

The numbers stand on the first line of the second text ("kappa=0.500 items=3 round=1"), the
evidence below it, an item a line, "+ " before those that answer a triple of the question
(``stages.evidence.judge_text``). A pool without that line is judged by its text alone. Where it is
too long the oldest item that answers nothing goes first.

Every forward pass has a fixed shape (``stages.encoder``): a score depends on its pair alone.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from stages.digest import digest
from stages.encoder import fixed_shape
from stages.errors import QuarryError
from stages.models import read_training

VERSION = "1"  # of the shapes and of what the net reads
HEAD = "head.safetensors"
TOKENS = 512  # of one forward pass, padding included
QUESTION_TOKENS = 64
HIDDEN = 64  # of the head
FEATURES = 4  # coverage, items, round; whether they are known
_NUMBERS = re.compile(r"kappa=(\d+(?:\.\d+)?) items=(\d+) round=(\d+)")


class Encoded(NamedTuple):
    """A pair as the net reads it."""

    ids: list[int]
    types: list[int]  # 0 the question, 1 the evidence
    features: tuple[float, ...]


class JudgeNet(nn.Module):
    """Encoder, mean of the tokens, two layers."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(dim + FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)
        )

    def forward(
        self, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """Logits (b,) of ids, types, mask (b, t) and features (b, FEATURES)."""
        states = self.encoder(
            input_ids=ids, token_type_ids=types, attention_mask=mask
        ).last_hidden_state  # (b, t, d)
        weights = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weights).sum(1) / weights.sum(1)
        return self.head(torch.cat([pooled, features], dim=1)).squeeze(1)


def open_net(folder: Path, *, seed: int | None = None) -> JudgeNet:
    """The net of a judge's directory; with a seed that of an encoder's, with a fresh head.

    Raises:
        QuarryError: weights are missing, or it has only one type of token.
    """
    with _quiet():
        encoder, report = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, add_pooling_layer=False,
        )  # fmt: skip
    if report["missing_keys"] or getattr(encoder.config, "type_vocab_size", 0) < 2:
        raise QuarryError(
            f"{folder}: a judge starts from a BERT encoder with all its weights and two types of "
            f"token. Name another finetune entry in params.yaml."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        net = JudgeNet(encoder, encoder.config.hidden_size)
    if seed is None:
        net.head.load_state_dict(load_file(folder / HEAD))
    return net.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without a report on an encoder's pooler, which is not used."""
    transformers.utils.logging.disable_progress_bar()
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def save_net(net: JudgeNet, folder: Path) -> None:
    """Encoder and head, each in a safetensors file."""
    net.encoder.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in net.head.state_dict().items()}, folder / HEAD)


# -- what it reads ----------------------------------------------------------------------------


def read_features(text: str) -> tuple[tuple[float, ...], list[str]]:
    """The numbers of a pool, scaled to about 1, and its items, a line each."""
    first, *rest = text.split("\n")
    if found := _NUMBERS.fullmatch(first):
        kappa, items, n_round = map(float, found.groups())
        return (kappa, items / 30, n_round / 5, 1.0), rest
    return (0.0,) * FEATURES, [first, *rest] if text else []


def without_features(text: str) -> str:
    """The pool's text alone: no numbers, and no mark of what answers a triple."""
    _, items = read_features(text)
    return "\n".join(re.sub(r"^\+ ", "- ", item) for item in items)


class Reader:
    """Pairs to token ids."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.max_tokens = max_tokens
        self.cls, self.sep = map(self.tokenizer.token_to_id, ("[CLS]", "[SEP]"))
        self.pad = self.tokenizer.token_to_id("[PAD]") or 0
        if self.cls is None or self.sep is None:
            raise QuarryError(
                f"{folder}: its tokenizer has no [CLS] and [SEP]; a judge needs BERT's."
            )

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
        """One per pair, at most ``max_tokens`` long."""
        return [self._one(question, text) for question, text in pairs]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        batch = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [one.ids for one in batch]

    def _one(self, question: str, text: str) -> Encoded:
        features, items = read_features(text)
        asked, *said = self._tokens([question, *items])
        asked = asked[: min(QUESTION_TOKENS, self.max_tokens - 3)]
        room = self.max_tokens - 3 - len(asked)
        free = [i for i, item in enumerate(items) if not item.startswith("+")]
        over = sum(map(len, said)) - room
        while over > 0 and free:  # oldest first, never one that answers a triple
            over -= len(said[free[0]])
            said[free.pop(0)] = []
        evidence = [token for of_one in said for token in of_one][:room]
        head = [self.cls, *asked, self.sep]
        tail = [*evidence, self.sep]
        return Encoded(head + tail, [0] * len(head) + [1] * len(tail), features)


def to_tensors(
    batch: Sequence[Encoded], shape: tuple[int, int], pad: int
) -> tuple[torch.Tensor, ...]:
    """ids, types, mask (rows, length) and features of a batch; missing rows are dummies."""
    ids = torch.full(shape, pad)
    types, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    mask[:, 0] = 1  # a dummy row looks at one token: no mean over nothing
    features = torch.zeros(shape[0], FEATURES)
    for row, one in enumerate(batch):
        n = len(one.ids)
        ids[row, :n], types[row, :n] = torch.tensor(one.ids), torch.tensor(one.types)
        mask[row, :n] = 1
        features[row] = torch.tensor(one.features)
    return ids, types, mask, features


def logits(net: JudgeNet, encoded: Sequence[Encoded], pad: int) -> npt.NDArray[np.float32]:
    """(n,) logits; row i depends on encoded[i] alone."""
    found = np.empty(len(encoded), dtype=np.float32)
    with torch.inference_mode():
        for part, shape in _batches(encoded):
            rows = net(*to_tensors([encoded[i] for i in part], shape, pad))
            found[part] = rows[: len(part)].numpy()
    return found


def _batches(encoded: Sequence[Encoded]) -> Iterator[tuple[list[int], tuple[int, int]]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(encoded):
        groups.setdefault(fixed_shape(len(one.ids), TOKENS), []).append(i)
    for shape, group in groups.items():
        for at in range(0, len(group), shape[0]):
            yield group[at : at + shape[0]], shape


# -- the judge --------------------------------------------------------------------------------


class Judge:
    """A ``Reranker``: (question, pool) to the probability that the pool is sufficient.

    Its net is loaded when it first scores: not at all where every score is kept already.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        made = read_training(folder, "judge")
        self.folder, self.threads = folder, threads
        self.temperature: float = _calibration(made, folder)["temperature"]
        self.reader = Reader(folder, made["made_by"]["max_tokens"])
        self.fingerprint = digest(
            "judge", VERSION, made["fingerprint"], repr(self.temperature),
            str(self.reader.max_tokens), str(threads),
        )  # fmt: skip

    @functools.cached_property
    def net(self) -> JudgeNet:
        return open_net(self.folder)

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """(n,) probabilities; row i depends on pairs[i] alone."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            found = logits(self.net, self.reader.encode(pairs), self.reader.pad)
        finally:
            torch.set_num_threads(before)
        return (1 / (1 + np.exp(-found.astype(np.float64) / self.temperature))).astype(np.float32)


def open_judge(folder: Path, threads: int = 1) -> Judge:
    """The judge of a model directory.

    Raises:
        QuarryError: no directory of this role, or not calibrated.
    """
    return Judge(folder, threads)


def read_threshold(folder: Path) -> float:
    """tau: the probability from which its training found it best to stop."""
    return _calibration(read_training(folder, "judge"), folder)["tau"]


def _calibration(made: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        found = made["made_by"]["calibration"]
        _ = found["temperature"], found["tau"]
    except KeyError as e:
        raise QuarryError(f"{folder}: a judge without {e}. Rebuild it: dvc repro.") from None
    return found
