"""What stands before every route: the host, the key, the size of the body; and the counting."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.serve.http.limits import Limits
from stages.serve.http.loopback import is_loopback
from stages.serve.http.metrics import Metrics
from stages.serve.http.problems import Problem

OPEN = {"/", "/healthz", "/readyz", "/page/app.js", "/page/style.css"}  # need no key
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
JSON = (b"content-type", b"application/json")


class Gate:
    """At most ``most`` at once; the next one is told to come back."""

    def __init__(self, most: int, what: str, limits: Limits, metrics: Metrics) -> None:
        self._most, self._what, self._limits = most, what, limits
        self._gauge = metrics.active.labels(what)
        self.inside = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """A place for the length of the block.

        Raises:
            Problem: 429, all are taken.
        """
        if self.inside >= self._most:
            raise Problem(
                429, "busy", f"{self._most} {self._what} are in flight, the most at once.",
                retry_after=self._limits.retry_seconds,
            )  # fmt: skip
        self.inside += 1
        self._gauge.set(self.inside)
        try:
            yield
        finally:
            self.inside -= 1
            self._gauge.set(self.inside)


Direct = Callable[[bytes, bytes], Awaitable[bytes | None]]  # (content type, body) -> JSON
Head = dict[bytes, bytes]  # names in lower case; of several of one name the first


class Guard:
    """ASGI: refuse who may not ask and what is too large, count what was answered."""

    def __init__(
        self, app: ASGIApp, limits: Limits, key: str | None, metrics: Metrics,
        connections: Callable[[], int], direct: Mapping[str, Direct],
    ) -> None:  # fmt: skip
        self._app, self._limits, self._metrics = app, limits, metrics
        self._connections, self._direct = connections, direct
        # A header is bytes: clients send a key that is not ASCII as UTF-8 or as Latin-1.
        codings = ("utf-8", "latin-1")
        self._keys = {key.encode(c, "surrogateescape") for c in codings if _has(key, c)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        route = "other"
        try:
            try:
                head = dict(reversed(scope["headers"]))
                self._admit(scope, head)
                body = await self._whole_body(head, receive)
                said = None
                if scope["method"] == "POST" and (direct := self._direct.get(scope["path"])):
                    route = scope["path"]
                    said = await direct(head.get(b"content-type", b""), body)
            except Problem as problem:
                await problem.response()(scope, receive, send_on)
                return
            if said is None:
                await self._app(scope, _after(body, receive), send_on)
                return
            headers = [JSON, (b"content-length", b"%d" % len(said))]
            await send_on({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": said})
        finally:
            route = getattr(scope.get("route"), "path", route)
            self._metrics.count(route, status, time.perf_counter() - start)

    def _admit(self, scope: Scope, head: Head) -> None:
        if self._connections() > self._limits.connections:
            raise Problem(
                503, "crowded", "too many connections are open.",
                retry_after=self._limits.retry_seconds, close=True,
            )  # fmt: skip
        scope["has_key"] = True
        if not self._keys:
            # No page of another site may ask through a name that it points at this machine.
            host = head.get(b"host", b"").decode("latin-1")
            name = host[1:].split("]")[0] if host.startswith("[") else host.rsplit(":", 1)[0]
            if not is_loopback(name):
                raise Problem(403, "host", "without a key this service answers on loopback only.")
            return
        scheme, _, given = head.get(b"authorization", b"").partition(b" ")
        given = given if scheme.lower() == b"bearer" else head.get(b"x-api-key", b"")
        raw = given.strip(b" \t")
        scope["has_key"] = any([hmac.compare_digest(raw, key) for key in self._keys])
        if not scope["has_key"] and scope["path"] not in OPEN:
            raise Problem(401, "key", "give the key as 'Authorization: Bearer KEY'.")

    async def _whole_body(self, head: Head, receive: Receive) -> bytes:
        """The whole body, read within the limits."""
        said = head.get(b"content-length", b"0")
        if not said.isdigit() or len(said) > 12 or int(said) > self._limits.body_bytes:
            raise self._too_large()
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "gone", "the body ended early.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.body_bytes:
                        raise self._too_large()
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Problem(408, "slow-body", "the body did not arrive in time.") from None
        return b"".join(parts)

    def _too_large(self) -> Problem:
        most = self._limits.body_bytes
        return Problem(413, "too-large", f"a body may have {most} bytes at the most.")


def _after(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives the body first."""
    whole: list[Message] = [{"type": "http.request", "body": body}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


def _has(key: str | None, coding: str) -> bool:
    """Whether the key can be written in it."""
    try:
        return bool((key or "").encode(coding, "surrogateescape"))
    except UnicodeEncodeError:
        return False
