"""Two runs of one question that differ in time alone: record once, replay.

The first answer of a comparison is recorded. In a later one every call of the model that is the
same is made again, for as many tokens as were written then, and gives what it gave then: whatever
the generator, both runs read and write the same texts, and only what lies between differs. Both
draw with the same seeds and begin cold.

Lin et al., TeleRAG, arXiv:2502.20969, §5: traces are recorded once, and every condition replays
prompts and outputs of the same token lengths.
"""

from collections import OrderedDict
from typing import Any

from stages.digest import digest
from stages.serve.http.bodies import AnswerBody
from stages.types import Generation, Request

KEPT = 64  # comparisons


class Record:
    """What the model gave in the first run of a comparison, by the key of the call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._gave: dict[str, Generation | int] = {}

    def known(self, key: str) -> Generation | int | None:
        """What this call gave; None if it was not made."""
        return self._gave.get(key)

    def keep(self, key: str, gave: Any) -> None:
        """The first result of a call; what was refused or cut off is none."""
        cut = isinstance(gave, Generation) and gave.finish == "cancelled"
        if isinstance(gave, Generation | int) and not cut:
            self._gave.setdefault(key, gave)


class Records:
    """The last comparisons, each by its id, its entry and its question."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Record] = OrderedDict()

    def of(self, entry: str, body: AnswerBody) -> Record:
        """The comparison that this request belongs to; its name decides what is drawn."""
        options, most = list(body.options), str(body.max_tokens)
        name = digest("comparison", body.comparison, entry, body.question, most, *options)
        record = self._kept.setdefault(name, Record(name))
        self._kept.move_to_end(name)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return record


def as_long(request: Request, known: Generation) -> Request:
    """The request for as many tokens as were written, whatever they are this time."""
    return request._replace(max_tokens=known.tokens_out, stop=())


class Retold:
    """The recorded text in pieces as long as those that come."""

    def __init__(self, known: Generation) -> None:
        self._left = known.text

    def piece(self, came: str) -> str:
        """What to tell for this piece."""
        piece, self._left = self._left[: len(came)], self._left[len(came) :]
        return piece

    def rest(self) -> str:
        """What was not told yet."""
        return self._left
