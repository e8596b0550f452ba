"""A suffix array over the passages as a generator's tokens: which texts go on from here, and how.

The corpus that FREESON walks (Kim & Kim, arXiv 2505.16409), who use an FM-index; with the suffix
array in its place (Manber & Myers, SIAM J. Comput. 1993) the children of a prefix are a slice of a
column, and nothing is decoded. 6 or 8 bytes a token where an FM-index needs about 3.

All passages in one row of tokens, a separator behind each; ``sa`` are the places of its suffixes
in order. The suffixes that begin with a prefix of d tokens are rows [left, right): the prefix
occurs right - left times, and the tokens at ``sa[left:right] + d`` stand in order. No prefix holds
a separator, so that column never leaves the text.

The separator is a number that is no token. Special tokens may lie in the text (a passage can
spell one) and are never offered. A prefix begins with a token that begins with a space: from the
middle of a word a model could only go on with garbage. Line breaks are spaces
(``stages.walks.passage_text``).

The array is sorted whole whatever changed: divsufsort (Mori) takes 0.4 s for a million tokens, and
reading kept tokens would be no faster than cutting texts again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from stages.errors import QuarryError
from stages.index import Inputs
from stages.index.layout import Contents, Index, KindParams, Slot
from stages.walks import passage_text, tokenizer_print

Ints = npt.NDArray[np.integer]
SPACES = ("Ġ", "▁")  # how byte-level and sentencepiece tokenizers write a leading space
GATHER = 1024  # rows; a wider range is cut in halves until every piece is one token


class Params(KindParams):
    """An entry of kind suffixes."""

    kind: Literal["suffixes"]
    corpus: Slot  # an entry of ingest
    model: Slot  # an entry of finetune: the generator that will walk
    centroids: Literal["none"]
    triples: Literal["none"] = "none"


def build(passages: pa.Table, params: Params, inputs: Inputs) -> Contents:
    """The sorted suffixes of all passages; passages lie by docid descending."""
    from pydivsufsort import divsufsort  # opening an index needs it not

    tokenizer = open_tokenizer(inputs.model)
    columns = [passages[name].to_pylist() for name in ("docid", "title", "text")]
    ordered = sorted(zip(*columns, strict=True), reverse=True)
    texts = [passage_text(title, text) for _, title, text in ordered]
    encoded = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    vocabulary = tokenizer.get_vocab_size()
    arrays = lay_out(encoded, vocabulary)
    arrays["sa"] = divsufsort(arrays["tokens"]) if len(ordered) else np.empty(0, np.int32)
    arrays["offered"], arrays["starts"] = offered(tokenizer)
    settings = {
        "generator": inputs.model.name, "tokenizer": tokenizer_print(tokenizer),
        "separator": vocabulary,
    }  # fmt: skip
    n = len(arrays["tokens"])
    facts = {"passages": len(ordered), "tokens": n}
    facts["bytes_per_token"] = round(sum(a.nbytes for a in arrays.values()) / max(n, 1), 2)
    return Contents([docid for docid, *_ in ordered], arrays, {}, settings, None, facts)


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a generator's directory, as the local generator uses it.

    Raises:
        QuarryError: there is none: the generator is a server.
    """
    if not (folder / "tokenizer.json").exists():
        raise QuarryError(
            f"{folder.name} has no tokenizer here (a server?). An index of kind suffixes is read "
            f"token by token by a generator on this machine: name such a model."
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def lay_out(encoded: Sequence[Sequence[int]], separator: int) -> dict[str, npt.NDArray]:
    """All but the suffixes: tokens (n,), where passages start (passages + 1,), and ``first``.

    Suffixes whose first token is t are rows first[t] to first[t + 1].
    """
    dtype = np.uint16 if separator < 2**16 else np.uint32
    ends = np.cumsum([0, *(len(ids) + 1 for ids in encoded)], dtype=np.int64)
    tokens = np.full(ends[-1], separator, dtype)
    for start, ids in zip(ends[:-1].tolist(), encoded, strict=True):
        tokens[start : start + len(ids)] = ids
    most = max(separator, int(tokens.max(initial=0)))
    counts = np.bincount(tokens, minlength=most + 1)
    return {"tokens": tokens, "doc_start": ends, "first": np.cumsum([0, *counts], dtype=np.int64)}


def offered(tokenizer: Tokenizer) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(tokens + 1,) each, the separator last: what may follow a prefix, what may begin one."""
    n = tokenizer.get_vocab_size()
    may_follow = np.ones(n + 1, bool)
    special = [i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special]
    may_follow[[*special, n]] = False
    begins = [(tokenizer.id_to_token(i) or "").startswith(SPACES) for i in range(n)]
    return may_follow, may_follow & np.array([*begins, False])


class Children(NamedTuple):
    """What follows some prefixes: (c,) arrays, prefix by prefix, tokens ascending."""

    owner: Ints  # the number of the prefix
    token: Ints
    left: Ints  # rows of the prefix with this token
    right: Ints


class Suffixes:
    """An opened index of kind suffixes. Arrays are memory-mapped; a passage is its number.

    ``left``, ``right`` and ``depth`` are those of prefixes, one or many: integers or arrays.
    """

    def __init__(
        self, tokens: Ints, sa: Ints, doc_start: Ints, first: Ints, offered: npt.NDArray[np.bool_],
        starts: npt.NDArray[np.bool_], *, docids: Sequence[str], name: str = "",
        tokenizer: str = "", fingerprint: str = "",
    ) -> None:  # fmt: skip
        self.tokens, self.sa, self.first = tokens, sa, np.asarray(first)
        self.doc_start, self.offered = np.asarray(doc_start), np.asarray(offered)
        self.docids, self.name = docids, name
        self.tokenizer, self.fingerprint = tokenizer, fingerprint
        begin = np.flatnonzero(starts & (self.first[1:] > self.first[:-1])[: len(starts)])
        zeros = np.zeros(len(begin), np.int64)
        self.roots = Children(zeros, begin, self.first[begin], self.first[begin + 1])

    def find(self, prefix: Sequence[int]) -> tuple[int, int]:
        """The rows that begin with these tokens; an empty range where there are none."""
        left, right = self.find_all([prefix])
        return int(left[0]), int(right[0])

    def find_all(self, prefixes: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
        """The rows of many prefixes, a token of all of them at a time."""
        lens = np.array([len(p) for p in prefixes], np.int64)
        tokens = np.full((len(prefixes), int(lens.max(initial=0)) + 1), -1, np.int64)
        for row, prefix in zip(tokens, prefixes, strict=True):
            row[: len(prefix)] = prefix
        inside = np.arange(tokens.shape[1]) < lens[:, None]
        odd = (inside & ((tokens < 0) | (tokens >= len(self.offered) - 1))).any(1)
        left, right = np.zeros(len(lens), np.int64), np.full(len(lens), len(self.sa))
        right[odd] = 0  # of what is no token, or crosses a separator, there is nothing
        one = (lens > 0) & ~odd
        left[one], right[one] = self.first[tokens[one, 0]], self.first[tokens[one, 0] + 1]
        for depth in range(1, tokens.shape[1]):
            on = np.flatnonzero((lens > depth) & (left < right))
            left[on], right[on] = self.extend(left[on], right[on], depth, tokens[on, depth])
        return left, right

    def extend(self, left: Ints, right: Ints, depth: Ints, token: Ints) -> tuple[Ints, Ints]:
        """The rows in which each token follows: two binary searches for all of them at once.

        The four are broadcast together. O(log(right - left)) gathers.
        """
        left, right, depth, token = np.broadcast_arrays(left, right, depth, token)
        low = self._bisect(left, right, depth, token)
        return low, self._bisect(low, right, depth, token, after=True)

    def mask(self, left: Ints, right: Ints, depth: Ints, tokens: Ints) -> npt.NDArray[np.bool_]:
        """Whether each token is offered and follows; one binary search for all (candidates first).

        (b,) prefixes and (b, k) candidates give (b, k).
        """
        args = np.broadcast_arrays(
            *(np.asarray(x)[..., None] for x in (left, right, depth)), tokens
        )
        at = self._bisect(*args)
        found = (at < args[1]) & (self._column(at, args[2]) == args[3])
        return found & self.offered[tokens]

    def among(self, left: Ints, right: Ints, depth: Ints, tokens: Ints) -> Children:
        """Those of the candidates that follow, with their rows; tokens (b, k) ascending in a row.

        A binary search for all of them, and a second one for those that are there.
        """
        args = np.broadcast_arrays(*(np.asarray(x)[:, None] for x in (left, right, depth)), tokens)
        low = self._bisect(*args)
        there = (low < args[1]) & (self._column(low, args[2]) == args[3]) & self.offered[tokens]
        low, (_, high, depth, token) = low[there], (x[there] for x in args)
        owner = np.nonzero(there)[0]
        return Children(owner, token, low, self._bisect(low, high, depth, token, after=True))

    def children(self, left: Ints, right: Ints, depth: Ints) -> Children:
        """Every offered token that follows each prefix, with its rows.

        A slice of a column shows where its value changes. A range above ``GATHER`` is cut in
        halves instead, and a piece whose ends are equal is one token: O(c log(right - left)).
        """
        left, right, depth = (np.atleast_1d(x) for x in (left, right, depth))
        owner = np.arange(len(left))
        wide = right - left > GATHER
        parts = [self._slices(*(x[~wide] for x in (owner, left, right, depth)))]
        if wide.any():
            parts.append(self._halves(*(x[wide] for x in (owner, left, right, depth))))
        all_of = [np.concatenate(p) for p in zip(*parts, strict=True)]
        keep = self.offered[all_of[1]]
        order = np.argsort(all_of[0][keep], kind="stable")
        return Children(*(x[keep][order] for x in all_of))

    def docs(self, left: int, right: int, limit: int) -> list[int]:
        """The passages of the first ``limit`` rows, ascending."""
        places = self.sa[left : min(right, left + limit)]
        return np.unique(np.searchsorted(self.doc_start, places, side="right") - 1).tolist()

    def text(self, doc: int) -> list[int]:
        """The tokens of a passage."""
        return self.tokens[self.doc_start[doc] : self.doc_start[doc + 1] - 1].tolist()

    def _column(self, rows: Ints, depth: Ints) -> Ints:
        """The tokens that follow at these rows; what is beyond the text is a separator."""
        last = len(self.sa) - 1
        return self.tokens[np.minimum(self.sa[np.minimum(rows, last)] + depth, last)]

    def _bisect(
        self, left: Ints, right: Ints, depth: Ints, token: Ints, *, after: bool = False
    ) -> Ints:
        """The first rows whose token is not below (with ``after``: is above) the one given."""
        low, high = np.array(left, np.int64), np.array(right, np.int64)
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            mid = (low + high) >> 1
            here = self._column(mid, depth)
            up = (here <= token if after else here < token) & (low < high)
            low, high = np.where(up, mid + 1, low), np.where(up, high, mid)
        return low

    def _slices(self, owner: Ints, left: Ints, right: Ints, depth: Ints) -> Children:
        sizes = right - left
        of = np.repeat(np.arange(len(owner)), sizes)
        begins = np.cumsum(sizes) - sizes
        rows = np.arange(len(of)) + (left - begins)[of]
        here = self._column(rows, depth[of])
        changed = (here[1:] != here[:-1]) | (of[1:] != of[:-1])
        at = np.flatnonzero(np.r_[len(of) > 0, changed])
        counts = np.diff(np.r_[at, len(of)])
        return Children(owner[of[at]], here[at].astype(np.int64), rows[at], rows[at] + counts)

    def _halves(self, owner: Ints, left: Ints, right: Ints, depth: Ints) -> Children:
        of, low, high = np.arange(len(owner)), np.array(left), np.array(right)
        one, last = self._column(low, depth), self._column(high - 1, depth)
        done: list[tuple[Ints, ...]] = []
        while len(of):
            equal = one == last
            done.append((of[equal], low[equal], high[equal], one[equal]))
            of, low, high, one, last = (x[~equal] for x in (of, low, high, one, last))
            mid = (low + high) >> 1
            ends = self._column(np.r_[mid - 1, mid], depth[np.r_[of, of]])
            before, behind = np.split(ends, 2)
            of, low, high = np.r_[of, of], np.r_[low, mid], np.r_[mid, high]
            one, last = np.r_[one, behind], np.r_[before, last]
        of, low, high, token = (np.concatenate(x) for x in zip(*done, strict=True))
        order = np.lexsort((low, of))
        of, low, high, token = (x[order] for x in (of, low, high, token))
        at = np.flatnonzero(np.r_[True, (token[1:] != token[:-1]) | (of[1:] != of[:-1])])
        ends = np.r_[at[1:], len(of)] - 1
        return Children(owner[of[at]], token[at].astype(np.int64), low[at], high[ends])


def retriever(index: Index, encoder: Path | None) -> Suffixes:
    """The suffixes; where a generator is given, its tokens must be theirs.

    Raises:
        QuarryError: it cuts texts into other tokens.
    """
    made, arrays = index.settings, index.arrays
    opened = Suffixes(
        *(arrays[n] for n in ("tokens", "sa", "doc_start", "first", "offered", "starts")),
        docids=index.docids, name=index.path.name, tokenizer=made["tokenizer"],
        fingerprint=index.fingerprint,
    )  # fmt: skip
    if encoder is not None and tokenizer_print(open_tokenizer(encoder)) != made["tokenizer"]:
        raise QuarryError(
            f"index '{index.path.name}' holds tokens of {made['generator']}; {encoder.name} cuts "
            f"texts into other tokens. Rebuild with dvc repro index@{index.path.name}."
        )
    return opened
