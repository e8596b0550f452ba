"""HTTP as it comes over the wire: httptools under uvicorn, with limits of our own.

uvicorn's other parser, h11, is in Python and takes half of the time of a small request. httptools
(llhttp) sets no limit to the head of a request, and what cannot be parsed is answered in plain
text: both are put right here.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stages.serve.http.problems import MEDIA_TYPE, Problem, dumps

HEAD = 65_536  # bytes of a request line and its headers


class Http(HttpToolsProtocol):
    """uvicorn's protocol."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._coming = self._head = 0  # bytes that are being parsed; of a head that has no end yet

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._coming = len(data)
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD and not self.transport.is_closing():
                self.send_400_response(f"the head of a request may have {HEAD} bytes at the most.")

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See httptools. What came together with the end of a body is no part of the next head."""
        super().on_message_complete()
        self._in_head, self._head = True, -self._coming

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or too long: a problem like any other, and the end of the connection."""
        said = dumps(Problem(400, "not-http", msg).body())
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: " + MEDIA_TYPE.encode()
            + b"\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(said) + said
        )  # fmt: skip
        self.transport.close()
