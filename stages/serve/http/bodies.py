"""The bodies of requests, with their limits in the schema; unknown members are errors.

And how a client is told: by named events with members.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

from stages.serve.http.limits import Limits

Emit = Callable[[str, dict[str, Any]], None]  # (name of the event, its members)
NAME = {"max_length": 200, "pattern": r"^[\w.-]+$"}


class SearchBody(BaseModel):
    """A search."""

    model_config = ConfigDict(extra="forbid", strict=True)
    query: str = Field(min_length=1, description="Words or a question.")
    k: int = Field(10, ge=1, description="Passages at the most.")
    index: str | None = Field(None, description="An index of the catalogue.", **NAME)


class AnswerBody(BaseModel):
    """A question."""

    model_config = ConfigDict(extra="forbid", strict=True)
    question: str = Field(min_length=1, description="The question.")
    entry: str | None = Field(None, description="An entry of the catalogue that answers.", **NAME)
    options: list[str] = Field([], description="If given, one of these is the answer.")
    max_tokens: int | None = Field(None, ge=1, description="Of a generation.")
    lookahead: bool = Field(True, description="Fetch clusters while the model writes.")
    comparison: str | None = Field(
        None, description="Answers to one question with the same id here begin cold, draw alike "
        "and write the same texts: they differ in time alone.", **NAME,
    )  # fmt: skip
    stream: bool = Field(True, description="Events as they come, or one JSON object at the end.")


class Bodies(NamedTuple):
    """Both with the limits of a service."""

    search: Any
    answer: Any


def bodies(limits: Limits) -> Bodies:
    """The models that FastAPI checks requests against."""
    text = Annotated[str, Field(min_length=1, max_length=limits.query_chars)]
    option = Annotated[str, Field(min_length=1, max_length=limits.option_chars)]
    search = create_model(
        "Search", __base__=SearchBody, query=(text, ...),
        k=(int, Field(10, ge=1, le=limits.k, description="Passages at the most.")),
    )  # fmt: skip
    answer = create_model(
        "Answer", __base__=AnswerBody, question=(text, ...),
        options=(list[option], Field([], max_length=limits.options)),
        max_tokens=(int | None, Field(None, ge=1, le=limits.max_tokens)),
    )  # fmt: skip
    return Bodies(search, answer)
