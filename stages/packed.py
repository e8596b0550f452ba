"""One forward pass over the tokens of many sequences: rows that decode beside prompts that fill.

A pass takes a single packed row of tokens: first one token of every decoding row, then chunks
of prompts, a prompt in one chunk or in several. All linear layers see the whole pack, so no
token is padding; only attention looks at each sequence by itself. This is chunked prefill as
in Sarathi-Serve (Agrawal et al., OSDI 2024) on transformers' own modules, through its interface
for attention functions.

Nothing here samples or knows text: ``stages.lm`` does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from stages.errors import QuarryError

# A CPU multiplies 4 to 15 tokens slower than 16 (SmolLM2's head: 8 tokens 26 ms, 16 tokens 21).
SLOW = range(4, 16)
GRAIN = 64  # columns by which the rows' cache grows


class Fill:
    """A token sequence on its way into the model, and its keys and values so far.

    ``wanted`` is the first position whose logits are asked for; ``done`` counts the tokens
    that are in ``kv``: (layers, 2, kv heads, tokens, d). The first ``shared`` of them are
    copied from ``donor``, which begins with the same.
    """

    def __init__(self, ids: list[int], wanted: int) -> None:
        self.ids, self.wanted = ids, wanted
        self.done = 0
        self.kv: Tensor | None = None
        self.donor: Fill | None = None
        self.shared = 0

    @property
    def waits(self) -> bool:
        """Whether the donor has not come far enough to be copied."""
        return self.donor is not None and self.donor.done < self.shared

    def orphan(self) -> None:
        """The donor stops here: take what it has, read the rest."""
        self.shared = min(self.shared, self.donor.done)


class Chunk(NamedTuple):
    """The tokens ``start`` to ``stop`` of a fill, all before them being done."""

    fill: Fill
    start: int
    stop: int

    @property
    def scored(self) -> range:
        """Positions whose logits this chunk gives."""
        return range(max(self.start, self.fill.wanted), self.stop)


class Rows:
    """Keys and values of the rows that decode: (layers, 2, rows, kv heads, columns, d).

    Row i holds ``lens[i]`` tokens from column 0 on; the last row moves into a dropped one's
    place. Unused columns are finite numbers: attention gives them weight 0, and 0 x NaN is NaN.
    """

    def __init__(self) -> None:
        self.kv: Tensor | None = None
        self.lens: list[int] = []

    def add(self, fill: Fill) -> None:
        """Copy a finished fill into a new last row."""
        self._reserve(len(self.lens) + 1, len(fill.ids) + 1, like=fill.kv)
        self.kv[:, :, len(self.lens), :, : len(fill.ids)] = fill.kv
        self.lens.append(len(fill.ids))

    def drop(self, i: int) -> None:
        """Forget row i; the last row takes its number."""
        n = self.lens.pop()
        if i < len(self.lens):
            self.kv[:, :, i, :, :n] = self.kv[:, :, len(self.lens), :, :n]
            self.lens[i] = n

    def grow(self) -> None:
        """Make room for one more token in every row."""
        if self.lens:
            self._reserve(len(self.lens), max(self.lens) + 1, like=self.kv)

    def _reserve(self, rows: int, columns: int, *, like: Tensor) -> None:
        old, had_rows, had_columns = self.kv, 0, 0
        if old is not None:
            had_rows, had_columns = old.shape[2], old.shape[4]
        if rows <= had_rows and columns <= had_columns:
            return
        if rows > had_rows:
            had_rows = max(rows, 2 * had_rows)
        if columns > had_columns:
            had_columns = max(-(-columns // GRAIN) * GRAIN, 2 * had_columns)
        layers, two, heads, d = *like.shape[:2], like.shape[-3], like.shape[-1]
        self.kv = like.new_zeros(layers, two, had_rows, heads, had_columns, d)
        if old is not None:
            n, used = len(self.lens), max(self.lens, default=0)
            self.kv[:, :, :n, :, :used] = old[:, :, :n, :, :used]


class Pack(NamedTuple):
    """What attention must know of a pass: where each sequence lies and what it sees."""

    rows: Rows
    lens: Tensor  # (n,) tokens of each row before this one
    mask: Tensor | None  # (n, 1, 1, columns)
    chunks: Sequence[Chunk]
    masks: list[Tensor | None]  # one per chunk, (tokens, stop); None: causal from the start


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: None, *,
    scaling: float, pack: Pack, **kwargs: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of a packed row: query (1, heads, t, d), key and value (1, kv heads, t, d).

    Writes the new keys and values to their sequences, then lets every sequence see its own.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise QuarryError(
            f"{type(module).__name__} caps its attention logits or has sinks, which the local "
            f"generator has not. Serve the model (vLLM, llama.cpp) and name the server instead."
        )
    layer, n = module.layer_idx, len(pack.lens)
    heads, kv_heads, d = query.shape[1], key.shape[1], query.shape[3]
    out = torch.empty_like(query.transpose(1, 2))  # (1, t, heads, d)
    if n:
        keys, values = pack.rows.kv[layer, :, :n].unbind(0)  # (n, kv heads, columns, d)
        row = torch.arange(n)
        keys[row, :, pack.lens] = key[0, :, :n].transpose(0, 1)
        values[row, :, pack.lens] = value[0, :, :n].transpose(0, 1)
        # The heads of one group are the queries of one key head: nothing is repeated.
        q = query[0, :, :n].view(kv_heads, heads // kv_heads, n, d).permute(2, 0, 1, 3)
        w = pack.mask.shape[-1]
        seen = attention(q, keys[..., :w, :], values[..., :w, :], pack.mask, scale=scaling)
        out[0, :n] = seen.reshape(n, heads, d)
    at = n
    for (fill, start, stop), mask in zip(pack.chunks, pack.masks, strict=True):
        here = slice(at, at + stop - start)
        fill.kv[layer, 0, :, start:stop] = key[0, :, here]
        fill.kv[layer, 1, :, start:stop] = value[0, :, here]
        keys, values = fill.kv[layer, :, None, :, :stop].unbind(0)
        seen = attention(
            query[:, :, here], keys, values, mask,
            is_causal=mask is None, scale=scaling, enable_gqa=True,
        )  # fmt: skip
        out[:, here] = seen.transpose(1, 2)
        at = here.stop
    out[:, at:] = 0  # padding
    return out, None


AttentionInterface.register("quarry_packed", _attend)


class PackedModel:
    """A causal language model of transformers in float32, run in packs."""

    def __init__(self, folder: Path) -> None:
        transformers_logging.disable_progress_bar()  # loading takes a second
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="quarry_packed", local_files_only=True
        )
        if not self.model._supports_attention_backend:
            raise QuarryError(
                f"{folder}: {type(self.model).__name__} does not attend as the local generator "
                f"needs it. Serve the model (vLLM, llama.cpp) and name the server instead."
            )
        self.model.requires_grad_(False).eval()
        self.config = self.model.config.get_text_config()
        self.tokens = 0  # that went through the model so far, padding not counted

    def start(self, fill: Fill) -> None:
        """Give a fill its cache, with what its donor has for it."""
        c = self.config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        d = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        fill.kv = torch.empty(c.num_hidden_layers, 2, heads, len(fill.ids), d)
        if fill.shared:
            fill.kv[..., : fill.shared, :] = fill.donor.kv[..., : fill.shared, :]
        fill.done, fill.donor = fill.shared, None

    @torch.no_grad()
    def step(self, rows: Rows, ids: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """Logits (k, v): of each row, which reads its one of ``ids``, then the scored of chunks."""
        rows.grow()
        tokens, positions, keep = list(ids), list(rows.lens), list(range(len(ids)))
        for chunk in chunks:
            keep += [len(tokens) + p - chunk.start for p in chunk.scored]
            tokens += chunk.fill.ids[chunk.start : chunk.stop]
            positions += range(chunk.start, chunk.stop)
        logits = self.run(tokens, positions, keep, self._pack(rows, chunks))
        rows.lens = [length + 1 for length in rows.lens]
        for chunk in chunks:
            chunk.fill.done = chunk.stop
        return logits

    @torch.no_grad()
    def run(
        self, tokens: Sequence[int], positions: Sequence[int], keep: Sequence[int], pack: Pack
    ) -> Tensor:
        """Logits (k, v) after the tokens of these numbers; ``pack`` says what each token sees."""
        self.tokens += len(tokens)
        padding = [0] * (SLOW.stop - len(tokens) if len(tokens) in SLOW else 0)
        return (
            self.model(
                input_ids=torch.tensor([[*tokens, *padding]]),
                position_ids=torch.tensor([[*positions, *padding]]),
                logits_to_keep=torch.tensor(keep, dtype=torch.long),
                use_cache=False,
                pack=pack,
            )
            .logits[0]
            .float()
        )

    def _pack(self, rows: Rows, chunks: Sequence[Chunk]) -> Pack:
        lens, mask = torch.tensor(rows.lens, dtype=torch.long), None
        if rows.lens:
            column = torch.arange(max(rows.lens) + 1)
            unseen = column > lens[:, None, None, None]
            mask = torch.zeros(unseen.shape).masked_fill_(unseen, -torch.inf)
        masks = [
            torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
            if start else None
            for _, start, stop in chunks
        ]  # fmt: skip
        return Pack(rows, lens, mask, chunks, masks)
