"""Retrieve and stop: the k best documents of every question, from one search of all of them.

The run is what this strategy computes; its effect log would be the run once more, five times
its size, and a search is cheaper than looking its record up. So it is not traced.
"""

from typing import Literal

from pydantic import PositiveInt

from stages.effects import Outcome, Question, Search, Steps
from stages.serve.asked import Library, Named, Served

TRACED = False


class Params(Served):
    """One index, one search per question."""

    strategy: Literal["search"]
    index: Named
    triples: Literal["none"]
    model: Literal["none"]
    max_active: PositiveInt = 100_000  # questions in one search


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The question's documents."""
    return Outcome(hits=(yield Search(question.text, params.k, unit="document")))
