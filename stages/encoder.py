"""Texts to vectors: dense (pooled tokens, unit length) and learned sparse (SPLADE).

A vector depends on its text alone, byte for byte. Batches are why it usually does not: another
number of rows, another padded length or another number of threads sums in another order. So every
forward pass here has one thread and a fixed shape, which the text's own number of tokens decides
(``fixed_shape``); dummy rows fill the last batch, until it has been seen how few of them give the
same bits (``_Model._pooled``): a service's single question is then read alone, or nearly. A new
document gets the bytes that it would get among a million others, on the same kind of processor,
with the same packages: those are in its key. ``threads`` are passes side by side: beside other
work two threads in one pass wait for each other, here nobody does.

``embed`` puts the record store in front: no text is encoded twice, across entries and runs.

Reimers & Gurevych, Sentence-BERT, EMNLP 2019; Formal et al., SPLADE v2, arXiv:2109.10086.
"""

import functools
import itertools
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
import transformers

from stages.digest import digest
from stages.errors import QuarryError
from stages.lanes import open_lanes
from stages.models import read_training
from stages.records import RecordStore
from stages.types import Encoder, Query, Role

VERSION = "3"  # of the shapes and formulas: another version, other last bits
ROWS = 16  # of a batch, or fewer, as many as fit into TOKENS
# At 128 tokens, texts per CPU second, dense: 40 with 4 rows, 32 with 8, 21 with 16; sparse, where
# a token has 30,522 logits: 88 with 2 rows, 58 with 4, 45 with 8. At 8 tokens 16 rows are best.
TOKENS = {"dense": 512, "sparse": 256}
AHEAD = 4  # passes per thread that wait or are done, and were not taken yet
BATCH = 256  # records between two commits of the store: a killed process loses no more

Forward = Callable[[Any, torch.Tensor], torch.Tensor]  # (model output, mask (b, t)) -> (b, d)


class _Model:
    """A transformer that only ever runs in fixed shapes, and counts the texts it has read.

    Its weights are loaded when it first reads one: not at all where every vector is kept already.
    """

    def __init__(
        self, folder: Path, role: Literal["dense", "sparse"], max_tokens: int, threads: int
    ):
        made = read_training(folder, role)
        self.folder, self.role, self.threads = folder, role, threads
        self.config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        longest = _json(folder / "tokenizer_config.json", {}).get("model_max_length", max_tokens)
        self.max_tokens = min(max_tokens, longest, self.config.max_position_embeddings)
        self.prompts = _prompts(folder)
        # Everything that decides a vector, but for packages and processor.
        self.fingerprint = digest("encoder", VERSION, made["fingerprint"], str(self.max_tokens))
        self.encoded = 0
        self._asked: Counter[tuple[int, int]] = Counter()  # partial batches by (rows, length)
        self._enough: dict[tuple[int, int], int] = {}  # rows that give the whole shape's bits there
        self._same: dict[tuple[int, int], bool] = {}  # whether (rows, length) gives them

    @functools.cached_property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @functools.cached_property
    def net(self) -> torch.nn.Module:
        dense = self.role == "dense"
        kind = transformers.AutoModel if dense else transformers.AutoModelForMaskedLM
        transformers.utils.logging.disable_progress_bar()
        net, report = kind.from_pretrained(
            self.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
        # A pooler is not used; any other weight that is not there would be a random number.
        if missing := [w for w in sorted(report["missing_keys"]) if not w.startswith("pooler.")]:
            raise QuarryError(
                f"{self.folder}: no weights for {', '.join(missing[:3])}: not a {self.role} "
                f"encoder. Name another finetune entry in params.yaml."
            )
        return net.eval()

    def key(self, text: str, role: Role) -> str:
        """Where the record store keeps this text's vector: all that made it."""
        versions = torch.__version__, transformers.__version__
        cpu = torch.backends.cpu.get_cpu_capability()
        return digest("embed", self.fingerprint, *versions, cpu, self.prompts[role] + text)

    def run(
        self, texts: Sequence[str], role: Role, pool: Forward
    ) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        """(positions in ``texts``, their pooled rows), batch by batch."""
        if not texts:
            return
        prompt, batch_tokens = self.prompts[role], TOKENS[self.role]
        with _reading:
            tokens = self.tokenizer(
                [prompt + t for t in texts], truncation=True, max_length=self.max_tokens
            )["input_ids"]
        groups: dict[tuple[int, int], list[int]] = {}
        for i, ids in enumerate(tokens):
            groups.setdefault(fixed_shape(len(ids), batch_tokens), []).append(i)
        passes = [
            (group[at : at + shape[0]], shape)
            for shape, group in groups.items()
            for at in range(0, len(group), shape[0])
        ]
        _ = self.net  # is loaded here, once
        reads = (
            self._workers.submit(self._read, [tokens[i] for i in part], shape, pool)
            for part, shape in passes
        )
        for (part, _), read in zip(passes, _ahead(reads, AHEAD * self.threads), strict=True):
            rows = read.result()
            self.encoded += len(part)
            yield part, rows

    @functools.cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return open_lanes(self.threads, "encoder")

    def _read(
        self, tokens: Sequence[Sequence[int]], shape: tuple[int, int], pool: Forward
    ) -> npt.NDArray[np.float32]:
        """One forward pass: the vectors of these texts, (n, d)."""
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.long)
        mask[:, 0] = 1  # a dummy row looks at one token: no softmax over nothing
        for row, of_text in enumerate(tokens):
            ids[row, : len(of_text)] = torch.tensor(of_text)
            mask[row, : len(of_text)] = 1
        with torch.inference_mode():
            return self._pooled(ids, mask, len(tokens), pool).numpy()

    def _pooled(self, ids: torch.Tensor, mask: torch.Tensor, n: int, pool: Forward) -> torch.Tensor:
        """The first n rows' vectors, (n, d), with the bits that the whole shape gives.

        How few rows give them is a matter of the kernels that multiply such shapes here: it is
        looked at when n rows of a length come for the second time, and holds from then on.
        """
        shape = n, ids.shape[1]
        if r := self._enough.get(shape):
            return self._forward(ids[:r], mask[:r], pool)[:n]
        whole = self._forward(ids, mask, pool)
        if n < len(ids):
            self._asked[shape] += 1
            if self._asked[shape] >= 2 and shape not in self._enough:
                tried = (r for r in (n, n + 1, n + 2, n + 4, n + 8) if r < len(ids))
                same = (r for r in tried if self._gives(r, ids, mask, pool, whole))
                self._enough[shape] = next(same, len(ids))
        return whole[:n]

    def _gives(
        self, r: int, ids: torch.Tensor, mask: torch.Tensor, pool: Forward, whole: torch.Tensor
    ) -> bool:
        """Whether r rows of this length give the bits of the whole shape; looked at once."""
        shape = r, ids.shape[1]
        if shape not in self._same:
            rows = self._forward(ids[:r], mask[:r], pool)
            self._same[shape] = torch.equal(rows, whole[:r])
        return self._same[shape]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, pool: Forward) -> torch.Tensor:
        return pool(self.net(input_ids=ids, attention_mask=mask), mask)


def fixed_shape(n_tokens: int, batch_tokens: int) -> tuple[int, int]:
    """(rows, length) of the batch that a text of so many tokens is read in.

    Lengths are multiples of 4 up to 32 tokens, of 8 up to 64, of 16 up to 128 and so on: padding
    stays below a quarter, and there are few enough lengths to fill batches of each.
    """
    n_tokens = max(1, n_tokens)  # a tokenizer without marks leaves nothing of an empty text
    step = max(4, 1 << (n_tokens - 1).bit_length() >> 3)
    length = -(-n_tokens // step) * step
    return max(1, min(ROWS, batch_tokens // length)), length


class DenseEncoder:
    """Sentence vectors: the mean of the token vectors (or the first), at unit length."""

    def __init__(self, folder: Path, *, max_tokens: int, threads: int) -> None:
        self.model = _Model(folder, "dense", max_tokens, threads)
        self.name, self.fingerprint = folder.name, self.model.fingerprint
        self.dim: int = self.model.config.hidden_size
        self._pool = _POOLING[_pooling(folder)]

    def encode(self, texts: Sequence[str], role: Role) -> npt.NDArray[np.float32]:
        """(n, d), unit rows; row i depends on texts[i] alone."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for part, rows in self.model.run(texts, role, self._pool):
            vectors[part] = rows
        return vectors

    def pack(self, vectors: npt.NDArray[np.float32]) -> list[bytes]:
        """One record per row."""
        return [row.astype("<f4").tobytes() for row in vectors]

    def unpack(self, records: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """The rows that were packed."""
        return np.frombuffer(b"".join(records), dtype="<f4").reshape(len(records), self.dim)


class SparseEncoder:
    """SPLADE: a weight per word of the vocabulary, w_j = max_i log(1 + relu(logit_ij))."""

    def __init__(self, folder: Path, *, max_tokens: int, threads: int) -> None:
        self.model = _Model(folder, "sparse", max_tokens, threads)
        self.name, self.fingerprint = folder.name, self.model.fingerprint
        self.dim: int = self.model.config.vocab_size

    def encode(self, texts: Sequence[str], role: Role) -> sp.csr_matrix:
        """(n, vocabulary) in float32, columns in order; row i depends on texts[i] alone."""
        rows: list[sp.csr_matrix] = [sp.csr_matrix((1, self.dim), dtype=np.float32)] * len(texts)
        for part, weights in self.model.run(texts, role, _splade):
            for i, row in zip(part, weights, strict=True):
                rows[i] = sp.csr_matrix(row[None])
        return sp.vstack(rows, format="csr") if rows else sp.csr_matrix((0, self.dim), dtype="f4")

    def pack(self, vectors: sp.csr_matrix) -> list[bytes]:
        """One record per row: the columns as int32, then as many float32 weights."""
        spans = zip(vectors.indptr[:-1], vectors.indptr[1:], strict=True)
        return [
            vectors.indices[a:b].astype("<i4").tobytes() + vectors.data[a:b].astype("<f4").tobytes()
            for a, b in spans
        ]

    def unpack(self, records: Sequence[bytes]) -> sp.csr_matrix:
        """The rows that were packed."""
        ends = np.cumsum([0] + [len(r) // 8 for r in records])
        columns = b"".join(r[: len(r) // 2] for r in records)
        weights = b"".join(r[len(r) // 2 :] for r in records)
        return sp.csr_matrix(
            (np.frombuffer(weights, "<f4"), np.frombuffer(columns, "<i4"), ends),
            shape=(len(records), self.dim),
        )


def open_encoder(
    folder: Path,
    role: Literal["dense", "sparse"] = "dense",
    *,
    max_tokens: int = 128,
    threads: int = 1,
) -> DenseEncoder | SparseEncoder:
    """The encoder of a model directory. ``max_tokens`` is cut to what the model can read.

    Raises:
        QuarryError: not a model directory of this role, or a pooling or module of
            sentence-transformers that is not implemented here; when it first encodes: weights
            are missing.
    """
    kind = DenseEncoder if role == "dense" else SparseEncoder
    return kind(folder, max_tokens=max_tokens, threads=threads)


def encode_queries(encoder: Encoder, queries: Sequence[Query]) -> npt.NDArray[np.float32]:
    """(q, d) query vectors; of a query of several texts their mean, which is no longer than 1.

    Gao et al., Precise Zero-Shot Dense Retrieval without Relevance Labels (HyDE), ACL 2023.
    """
    texts = [(query,) if isinstance(query, str) else query for query in queries]
    vectors = encoder.encode([text for of_query in texts for text in of_query], "query")
    ends = np.cumsum([len(of_query) for of_query in texts])[:-1]
    parts = np.split(vectors, ends) if texts else []
    means = [part[0] if len(part) == 1 else part.mean(0, dtype=np.float64) for part in parts]
    return np.array(means, dtype=np.float32).reshape(len(texts), encoder.dim)


def embed(
    encoder: DenseEncoder | SparseEncoder,
    docids: Sequence[str],
    texts: Sequence[str],
    store: RecordStore,
) -> npt.NDArray[np.float32] | sp.csr_matrix:
    """``encoder.encode(texts, "passage")``, from the record store where it has a text's vector.

    Equal texts are encoded once. New ones go to the model by length, so that batches are full.

    Raises:
        QuarryError: a vector with NaN or infinity, naming its document; none of its batch is kept.
    """

    def encode(records: list[tuple[str, str]]) -> list[bytes]:
        vectors = encoder.encode([text for _, text in records], "passage")
        values = vectors.data if sp.issparse(vectors) else vectors
        if not np.isfinite(values).all():
            bad = [np.isfinite(vectors[i].sum()) for i in range(len(records))].index(False)
            raise QuarryError(
                f"encoder '{encoder.name}': the vector of document {records[bad][0]!r} has NaN or "
                f"infinity. Its weights are damaged: make the model again (dvc repro -f "
                f"finetune@{encoder.name}), with a smaller learning rate if it was trained."
            )
        return encoder.pack(vectors)

    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
    keys = [encoder.model.key(texts[i], "passage") for i in order]
    records = [(docids[i], texts[i]) for i in order]
    threads = encoder.model.threads
    packed = store.compute(keys, records, encode, batch=BATCH, unit="passage", cores=threads)
    in_place = [b""] * len(texts)
    for i, record in zip(order, packed, strict=True):
        in_place[i] = record
    return encoder.unpack(in_place)


def _mean(output: Any, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(torch.float32)  # (b, t, 1)
    pooled = (output.last_hidden_state * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1)


def _first(output: Any, mask: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(output.last_hidden_state[:, 0], dim=1)


def _splade(output: Any, mask: torch.Tensor) -> torch.Tensor:
    # log1p and relu rise with their argument, so the maximum goes first. Padding is at the end.
    best = [row[:t].amax(0) for row, t in zip(output.logits, mask.sum(1).tolist(), strict=True)]
    return torch.stack(best).relu_().log1p_()  # (b, v)


_POOLING: dict[str, Forward] = {"mean": _mean, "cls": _first}


def _pooling(folder: Path) -> str:
    """How sentence-transformers' files say that tokens become one vector; else the mean."""
    modules = _json(folder / "modules.json", [])
    known = {"Transformer", "Pooling", "Normalize"}
    if other := [m["type"] for m in modules if m["type"].rpartition(".")[2] not in known]:
        raise QuarryError(
            f"{folder}/modules.json: module {other[0]} is not implemented; there are: "
            f"{', '.join(sorted(known))}. Use another encoder."
        )
    config = _json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    old = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}  # before version 5
    on = [k for k, v in config.items() if k.startswith("pooling_mode_") and v]
    mode = config.get("pooling_mode") or "+".join(old.get(k, k) for k in on)
    if mode not in _POOLING:
        raise QuarryError(
            f"{folder}/1_Pooling/config.json: pooling '{mode}' is not implemented; there are: "
            f"{', '.join(_POOLING)}. Use another encoder."
        )
    return mode


def _prompts(folder: Path) -> dict[str, str]:
    """What sentence-transformers' files put before a query and before a passage; often nothing."""
    said = _json(folder / "config_sentence_transformers.json", {}).get("prompts", {})
    passage = said.get("document") or said.get("passage") or ""
    return {"query": said.get("query") or "", "passage": passage}


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def _ahead(begun: Iterator[Future[Any]], n: int) -> Iterator[Future[Any]]:
    """The same, n of them begun before the first is asked for."""
    waiting = deque(itertools.islice(begun, n))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(begun, 1))


_reading = threading.Lock()  # a tokenizer is for one thread at a time; encoders travel without it
