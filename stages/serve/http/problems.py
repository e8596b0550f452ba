"""Errors as RFC 9457 bodies: ``application/problem+json`` with type, title, status and detail."""

from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """What a client did, or met, wrong. ``code`` is stable; ``detail`` is for people."""

    def __init__(
        self, status: int, code: str, detail: str, *, retry_after: int | None = None,
        close: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.retry_after, self.close, self.more = retry_after, close, more

    def body(self) -> dict[str, Any]:
        """The members of the problem's JSON object."""
        return {
            "type": f"urn:quarry:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }

    def response(self) -> Response:
        """The whole answer to the request."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.close:  # the connection, for another to have its place
            headers["Connection"] = "close"
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(dumps(self.body()), self.status, headers, MEDIA_TYPE)


def dumps(value: Any) -> bytes:
    """JSON. A lone surrogate, which UTF-8 cannot hold, becomes a question mark."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return orjson.dumps(_sound(value), option=orjson.OPT_SERIALIZE_NUMPY)


def _sound(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_sound(k): _sound(v) for k, v in value.items()}
        case list() | tuple():
            return [_sound(v) for v in value]
    return value
