"""The leaves of FanOutQA as questions of their own: one fact answers each.

Same corpus as ``fanoutqa``. The leaves whose answer is a single value (text, number, yes or no),
1,772 of 2,126, are the questions; relevant is the fact that states the answer. A leaf is in the
split of the questions above it, which share one: see ``fanoutqa`` for why none leaks. The 80 whose
form asks for yes or no have these as their options.
"""

from pathlib import Path

from stages.ingest.fanoutqa import answer_type, facts, find_leaves, flatten, load, splits
from stages.ingest.lines import canonical_json
from stages.ingest.source import Judgement, Question, Source, SourceParams
from stages.ingest.statement import options
from stages.records import RecordStore


class Params(SourceParams):
    """An entry with ``source: fanoutqa_leaf``; ``path`` as of ``fanoutqa``."""


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """The leaf questions with a scalar answer, each with its fact."""
    tops = load(path)
    leaves = find_leaves(tops)
    split = splits(tops, leaves)
    scalar = [
        leaf for leaf in leaves
        if answer_type(leaf.answer) == "scalar" and leaf.answer != ""  # one has no answer
    ]  # fmt: skip
    questions = [
        Question(
            leaf.id, leaf.question, split[leaf.parents[0]], leaf.id, flatten(leaf.answer),
            options(leaf.question),
            meta=canonical_json({"answer_type": "scalar", "parents": leaf.parents}),
        )
        for leaf in scalar
    ]  # fmt: skip
    judgements = [Judgement(leaf.id, leaf.id, 1, leaf.id) for leaf in scalar]
    return Source(facts(leaves), questions, judgements)
