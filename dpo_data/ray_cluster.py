"""Ray, for work that is spread over processes and machines: a cluster to attach to, or one of our own on this machine.

Where RAY_ADDRESS names a cluster, it is used as it is and left as it was. Else one is started that serves this process alone:
it listens on 127.0.0.1, wants a token, and has no dashboard. All of it runs below a `Child`, so it ends with this process in
whatever way that ends; and so does its folder.
"""

import atexit
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from tempfile import gettempdir
from typing import Any

from dpo_data.child import Child, Parent
from dpo_data.errors import EngineError

QUIET: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
"""Ray leaves our output and our loggers alone."""

SHORT = "/tmp"
"""Where its files are, wherever others are: a socket's path has 107 bytes at most."""

_lock = threading.Lock()
_users = 0
_connection = ExitStack()
_head: Child | None = None
_ended: EngineError | None = None
"""What became of it: it can be heard of but once."""


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray, the module, connected while the block runs. Blocks may overlap: they share one connection, which ends with the last.
    Raises EngineError where Ray is not installed, does not start, or does not answer at RAY_ADDRESS."""
    global _users
    with _lock:
        if not _users:
            _connection.enter_context(_connected())
            atexit.register(_connection.close)
        _users += 1
    try:
        yield _ray()
    finally:
        with _lock:
            _users -= 1
            if not _users:
                atexit.unregister(_connection.close)
                _connection.close()


def is_own() -> bool:
    """Whether a cluster would be, or is, one of our own on this machine."""
    return not os.environ.get("RAY_ADDRESS")


def require() -> None:
    """Raises EngineError where the Ray that was started here has ended: whoever waits for its answers would wait for ever."""
    global _ended
    try:
        if _head and not _ended:
            _head.receive(0)
    except TimeoutError:
        return
    except EngineError as error:
        _ended = EngineError(f"Ray has ended on this machine: {error.what}", error.remedy)
    if _ended:
        raise EngineError(_ended.what, _ended.remedy)


@contextmanager
def local() -> Iterator[str]:
    """Ray's processes on this machine, while the block runs, as their address."""
    global _head, _ended
    for name, value in _environment().items():
        os.environ.setdefault(name, value)
    if _ray()._private.ray_constants.ENABLE_RAY_CLUSTER:
        raise EngineError(
            "Ray was imported before it could be told to listen on 127.0.0.1 alone",
            "Import it later, or call ray.init() before and it is used as it is.",
        )
    with closing(Child("dpo_data.ray_cluster:head", logger="dpo_data.ray", temp=SHORT)) as child:
        address = child.receive()
        _head = child
        try:
            yield address
        finally:
            _head = _ended = None


def head(parent: Parent) -> None:
    """In the child: start Ray with its files in the child's folder, tell its address, and hold it for as long as it lives."""
    ray = _ray()
    ray.init("local", include_dashboard=False, _temp_dir=gettempdir(), **QUIET)
    parent.send(ray.get_runtime_context().gcs_address)
    while any(node["Alive"] for node in ray.nodes()):
        time.sleep(1)
    raise RuntimeError("the raylet is gone")


@contextmanager
def _connected() -> Iterator[None]:
    if "ray" in sys.modules and _ray().is_initialized():  # by the program that we are part of
        yield
        return
    with local() if is_own() else nullcontext(os.environ["RAY_ADDRESS"]) as address:
        _attach(address)
        try:
            yield
        finally:
            _ray().shutdown()


def _attach(address: str) -> None:
    ray, terminates = _ray(), signal.getsignal(signal.SIGTERM)
    job = ray.job_config.JobConfig(_client_job=True)  # else Ray's workers import what lies in this working folder
    try:
        ray.init(address, job_config=job, **QUIET)
    except (ConnectionError, ValueError) as error:
        raise EngineError(
            f"No Ray cluster answers at {address}: {error}",
            "Mend RAY_ADDRESS; or unset it, and Ray is started on this machine.",
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminates)  # Ray has put its own there


def _ray() -> Any:
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # else it prints among our output that a worker died
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # a try to reach a cluster takes 40 s, and else there are 20
    try:
        import ray
    except ImportError:
        raise EngineError("Ray is not installed", "pip install 'dpo-data[ray]'") from None
    return ray


def _environment() -> dict[str, str]:
    """What Ray's processes and this one must agree on. Ray reads it once, when it is imported, so it stays set.

    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 has Ray listen on 127.0.0.1 alone on Linux too: there is no other setting for it.
    """
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",  # a busy machine takes longer than Ray's own limit
        "RAY_memory_monitor_refresh_ms": "0",  # Ray would kill a worker for the memory that others of the machine have
    }
