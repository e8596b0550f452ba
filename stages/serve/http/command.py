"""``python -m stages.serve http``: serve the catalogue until SIGTERM or Ctrl-C."""

import argparse
import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from stages.errors import QuarryError
from stages.serve.http import __doc__ as ABOUT
from stages.serve.http.limits import Limits
from stages.serve.http.loopback import is_loopback

ABOUT_AHEAD = """An index of kind clustered is fetched ahead as the block 'ahead' of its entry in
params.yaml says (stages/serve/asked.py has its keys and what each is for), and by
the defaults of that block where an entry has none. What is given here holds in
place of what they say, for every entry."""

MIB = 2**20
M_MMAP_THRESHOLD = -3  # malloc.h
CONNECTIONS = 512  # beyond the requests that are worked on: idle ones, and those told to wait
STALLED = 30_000  # milliseconds after which a client that takes nothing is disconnected
DRAIN = 5.0  # seconds beyond the longest answer that a shutdown waits


def main(argv: Sequence[str]) -> int:
    """Exit status 2, with a message, if it cannot start."""
    args = parse(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    give_back_blocks()
    try:
        serve(args)
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # after the drain uvicorn raises the signal that ended it
        return 0
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    limits = Limits()
    p = argparse.ArgumentParser(
        prog="python -m stages.serve http", description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--port", type=_port, default=8000, help="0: any free one, which is printed")
    p.add_argument("--host", default="127.0.0.1", help="another than loopback needs a key")
    p.add_argument(
        "--entry", action="append", metavar="NAME",
        help="an entry of 'serve' in params.yaml; may be repeated; none: all of them",
    )  # fmt: skip
    p.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="the environment variable that holds the key which requests must give",
    )
    p.add_argument("--answers", type=_places, default=limits.answers, help="in flight at once")
    p.add_argument("--searches", type=_places, default=limits.searches, help="in flight at once")
    p.add_argument("--answer-seconds", type=_seconds, default=limits.answer_seconds)
    p.add_argument("--search-seconds", type=_seconds, default=limits.search_seconds)
    add_ahead(p)
    return p.parse_args(argv)


def add_ahead(p: argparse.ArgumentParser) -> None:
    """What an entry's ``ahead`` block says, for all entries of this service."""
    group = p.add_argument_group("lookahead", ABOUT_AHEAD)
    group.add_argument("--hot-mib", type=_size, metavar="MIB", help="memory for clusters")
    group.add_argument(
        "--budget-mib", type=_budget, metavar="MIB|auto",
        help="what one window may copy; auto: the best by what was measured while serving",
    )  # fmt: skip
    group.add_argument(
        "--codec", choices=["fp32", "fp16", "int8"],
        help="short codes are more clusters in the same memory, and are scored again in fp32; the"
        " index needs them: codes: [fp16] in its entry",
    )  # fmt: skip
    group.add_argument("--tier", choices=["ram", "cuda"], help="disk -> RAM, or pinned RAM -> CUDA")
    group.add_argument(
        "--scope", choices=["probed", "resident"],
        help="resident: searches whatever is in memory, too; finds more, not always the same",
    )  # fmt: skip
    group.add_argument(
        "--disk-mib", type=_size, metavar="MIB_PER_S",
        help="slow the disk down to this, to see what fetching ahead does; 0: as it is",
    )  # fmt: skip


def read_ahead(args: argparse.Namespace) -> dict[str, Any]:
    """The values of an ``ahead`` block that were given."""
    names = ("hot_mib", "budget_mib", "codec", "tier", "scope")
    given = {n: v for n in names if (v := getattr(args, n)) is not None}
    if args.disk_mib is not None:
        given["disk_mib_s"] = args.disk_mib or None
    return given


def _budget(text: str) -> float | str:
    return text if text == "auto" else _size(text)


def _port(text: str) -> int:
    if not 0 <= (port := _whole(text)) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is no port: it must be 0 to 65535")
    return port


def _places(text: str) -> int:
    if (n := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few: at least 1")
    return n


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None


def _size(text: str) -> float:
    if (x := _finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return x


def _seconds(text: str) -> float:
    if (x := _finite(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no time: more than 0 seconds")
    return x


def _finite(text: str) -> float:
    try:
        x = float(text)
    except ValueError:
        x = math.nan
    if not math.isfinite(x):
        raise argparse.ArgumentTypeError(f"'{text}' is no finite number")
    return x


def read_key(host: str, variable: str | None) -> str | None:
    """The key, None if there is to be none.

    Raises:
        QuarryError: the host is not loopback and no key is given, or the variable is empty.
    """
    if variable:
        if key := os.environ.get(variable, "").strip():
            return key
        raise QuarryError(f"--api-key-env {variable}: that environment variable is not set.")
    if not is_loopback(host):
        raise QuarryError(
            f"--host {host} is not loopback: others could ask. Put a key into an environment "
            f"variable and name it: --api-key-env QUARRY_API_KEY"
        )
    return None


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        QuarryError: the port is taken, or there is no such address here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # TCP is said, or asyncio leaves Nagle's algorithm on: 44 ms a request -> 4 ms.
    s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED)
    try:
        s.bind((host, port))
    except OSError as e:
        s.close()
        raise QuarryError(f"cannot listen on {host}, port {port}: {e}. Choose: --port N") from None
    return s


def give_back_blocks() -> None:
    """Let freed blocks of 1 MiB and more go back to the system, as long as the process lives.

    By itself glibc moves them into its heap after the first one was freed; the caches of prompts, 5
    to 15 MB each and none like the other, leave holes there.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)


def serve(args: argparse.Namespace) -> None:
    """Serve until told to stop; then finish what is in flight."""
    key = read_key(args.host, args.api_key_env)
    from stages.serve.http.catalogue import Catalogue, read_entries

    entries = read_entries(args.entry)
    import uvicorn

    from stages.serve.http.app import make_app
    from stages.serve.http.wire import Http

    limits = Limits(
        answers=args.answers, searches=args.searches, answer_seconds=args.answer_seconds,
        search_seconds=args.search_seconds,
        connections=args.answers + args.searches + CONNECTIONS,
    )  # fmt: skip
    sock = listen(args.host, args.port)
    catalogue = Catalogue(entries, read_ahead(args))
    app = make_app(catalogue, limits, key, lambda: len(server.server_state.connections))
    config = uvicorn.Config(
        app, http=Http, ws="none", log_config=None, access_log=False, server_header=False,
        lifespan="on", timeout_graceful_shutdown=int(limits.answer_seconds + DRAIN),
        timeout_keep_alive=65, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"quarry: http://{host}:{sock.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
    server.run(sockets=[sock])
