"""A port on which nobody listens."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """A port of this machine that is free, and below those that it gives to whoever connects to somewhere: one of these may be
    taken before somebody listens there. Raises OSError where a hundred are taken."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("a hundred ports of 127.0.0.1 are taken")
