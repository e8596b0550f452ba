"""Which names mean this machine, as an address to listen on and as a Host header."""

import functools
import ipaddress


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether it is ``localhost`` in any case, of 127.0.0.0/8, or ``::1`` without brackets."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
