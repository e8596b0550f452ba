"""Which stages may start now: behind all they read, two at once, one of them with torch."""

import re
from collections.abc import Collection, Iterator, Mapping

from flows.dvc import COMPLETED, RESTORED, UNCHANGED, Stage

AT_ONCE = 2  # stages
TORCH_AT_ONCE = 1
TORCH_TAG = "gpu"  # under which the server limits them between flows

_SHORT = re.compile(r"(.*:)?(fuse|evaluate)@")  # seconds, whatever the corpus
_MODEL = re.compile(r"data/(studies/)?finetune/(?!none$)")
_MADE = (COMPLETED, RESTORED)
_WELL = (*_MADE, UNCHANGED)


def needs_torch(stage: Stage) -> bool:
    """Whether the stage computes with torch: it reads or writes a model."""
    return any(_MODEL.match(path) for path in (*stage.reads, *stage.writes))


class Plan:
    """Which stages may start, given how others ended. Knows neither Prefect nor processes."""

    def __init__(self, stages: Mapping[str, Stage], changed: Collection[str]) -> None:
        self.outcomes: dict[str, str] = {}  # the name of the state in which a stage ended
        self._changed = set(changed)
        self._torch = {name for name, stage in stages.items() if needs_torch(stage)}
        behind: dict[str, set[str]] = {name: set() for name in stages}
        for stage in reversed(stages.values()):  # upstream comes first in the graph
            for name in stage.upstream:
                behind[name] |= behind[stage.name] | {stage.name}
        # All torch stages wait for one place: they go first, those that most others wait for before
        # the others.
        self._waiting = sorted(
            stages.values(), key=lambda s: (s.name not in self._torch, -len(behind[s.name]))
        )
        self._behind = behind
        self._reached = self._changed.union(*(behind[name] for name in self._changed))
        self._running: set[str] = set()
        self._total = len(stages)

    def start(self) -> Iterator[tuple[Stage, bool]]:
        """The stages that may start now, each with whether it needs a process.

        A stage needs none if nothing changed in or before it, nor if an upstream was not made:
        it is only shown then.
        """
        for stage in [s for s in self._waiting if all(u in self.outcomes for u in s.upstream)]:
            before = [self.outcomes[u] for u in stage.upstream]
            is_reached = stage.name in self._changed or any(o in _MADE for o in before)
            run = is_reached and all(o in _WELL for o in before)
            if run and not self._has_place(stage.name):
                continue
            self._waiting.remove(stage)
            if run:
                self._running.add(stage.name)
            yield stage, run

    def is_alone(self, name: str) -> bool:
        """Whether nothing long of this flow can run beside a stage with torch until its end."""
        if name not in self._torch:
            return False
        left = self._running.union(stage.name for stage in self._waiting)
        blocked = set().union(
            *(self._behind[torch] for torch in left & self._torch & self._reached)
        )
        beside = (left & self._reached) - self._torch - blocked - {name}
        return all(_SHORT.match(other) for other in beside)

    def _has_place(self, name: str) -> bool:
        if name in self._torch and len(self._running & self._torch) >= TORCH_AT_ONCE:
            return False
        return len(self._running) < AT_ONCE

    def end(self, name: str, outcome: str) -> None:
        """A stage that was started has ended."""
        self.outcomes[name] = outcome
        self._running.discard(name)

    def is_done(self) -> bool:
        """Whether all stages have ended."""
        return len(self.outcomes) == self._total

    def tags(self, name: str) -> list[str]:
        """What the server limits between flows."""
        return [TORCH_TAG] if name in self._torch else []

    def summary(self) -> str:
        """``34 stages: 3 Completed, 30 Unchanged, 1 not run``."""
        words = (*_WELL, "Failed", "Cancelled")
        number = {word: sum(o == word for o in self.outcomes.values()) for word in words}
        number["not run"] = self._total - sum(number.values())
        counts = ", ".join(f"{n} {word}" for word, n in number.items() if n)
        return f"{self._total} stages: {counts}"
