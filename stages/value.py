"""The value head: does going on from a prefix reach the answer? By a model's last hidden state.

V = sigmoid(w2 · gelu(W1 h)), h the final hidden state of the prefix's last token, behind the prompt
(Kim & Kim, FREESON). h is standardised first, by mean and deviation over what the head was trained
on (ours: some components of a model are a hundred times the others).
"""

from pathlib import Path

import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu

from stages.models import read_training

WEIGHTS = "model.safetensors"


class Head(nn.Module):
    """Weights W1 (hidden, d) and w2 (hidden,), and the standardisation (d,)."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(hidden, d))
        self.w2 = nn.Parameter(torch.empty(hidden))
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("deviation", torch.ones(d))

    def forward(self, h: Tensor) -> Tensor:
        """Logits (n,) of hidden states (n, d)."""
        h = (h - self.mean) / self.deviation
        return gelu(h @ self.w1.T) @ self.w2


def fresh_head(d: int, hidden: int, *, seed: int) -> Head:
    """An untrained head: normal weights of variance 1 / inputs, the scale of Kaiming's."""
    head = Head(d, hidden)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.w1.normal_(generator=random).mul_(d**-0.5)
        head.w2.normal_(generator=random).mul_(hidden**-0.5)
    return head


class ValueHead:
    """An opened head; ``generator`` is the fingerprint of the model whose states it reads."""

    def __init__(self, folder: Path) -> None:
        made = read_training(folder, "value")
        self.fingerprint: str = made["fingerprint"]
        self.generator: str = made["made_by"]["base"]
        weights = load_file(folder / WEIGHTS)
        self._head = Head(weights["w1"].shape[1], len(weights["w2"])).double()
        self._head.load_state_dict(weights)

    @torch.no_grad()
    def predict(self, hidden: npt.NDArray) -> npt.NDArray:
        """(n,) values in [0, 1] of hidden states (n, d)."""
        return self._head(torch.from_numpy(hidden).double()).sigmoid().numpy()
