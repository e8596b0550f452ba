"""A POST with a JSON body and a JSON answer, without a framework's layers: for what is asked most.

FastAPI has the same route, which describes it and answers whatever is not as it must be: another
content type, a body with a mistake, another method. What is sound is read by pydantic in one go and
answered here. ``benchmarks/serve.py`` prints how many a second of either kind there can be at most.
"""

import logging
from collections.abc import Awaitable, Callable

from pydantic import BaseModel, ValidationError

from stages.serve.http.guard import Gate
from stages.serve.http.problems import Problem

log = logging.getLogger(__name__)


class Direct:
    """Answers a body, within a gate."""

    def __init__(
        self, model: type[BaseModel], answer: Callable[[BaseModel], Awaitable[bytes]], gate: Gate
    ) -> None:
        self._model, self._answer, self._gate = model, answer, gate

    async def __call__(self, content_type: bytes, body: bytes) -> bytes | None:
        """JSON; None: it is to go the long way.

        Raises:
            Problem: as the route.
        """
        if content_type != b"application/json":
            return None
        try:
            asked = self._model.model_validate_json(body)
        except ValidationError:
            return None
        with self._gate.enter():
            try:
                return await self._answer(asked)
            except Problem:
                raise
            except Exception:
                log.exception("a request failed")
                raise Problem(
                    500, "internal", "something failed here; the log says what."
                ) from None
