"""One machine at a time works on a run in an object store.

A store knows no processes, so this lock is a lease: an object that its holder writes anew every half minute. It is made by a
conditional write, so of two that begin at once one is refused. A lease that was not renewed for five minutes is free, and so is
that of a process of this machine that is gone. Who lost a lease, because it could not reach the store for that long, writes no
more. Times are compared with this machine's clock, which S3 refuses where it is 15 minutes off.
"""

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

from dpo_data.errors import InUse, StoreError
from dpo_data.lock import Owner, this_process
from dpo_data.store import Object, Store, object_of, reached

FILE = "lease.json"
"""At the top of the run directory."""

EVERY = 30.0
"""Seconds between two renewals."""
TERM = 300.0
"""Seconds without a renewal after which a lease is free."""

log = logging.getLogger(__name__)


class Lease(NamedTuple):
    """A lease as the store has it. `owner` is None where it cannot be read."""

    owner: Owner | None
    object: Object

    @property
    def lapsed(self) -> bool:
        """Whether its holder is gone, or has not been heard of for too long."""
        here = this_process()
        if self.owner and self.owner.host == here.host:
            return not _is_alive(self.owner.pid)
        return time.time() - (self.object.changed or 0) > TERM


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Hold the lease of a run while the block runs. Raises InUse, and StoreError."""
    url, owner = f"{store.url}/{FILE}", this_process()
    version = _taken(url, owner)
    ended = threading.Event()

    def renew() -> None:
        nonlocal version
        while not ended.wait(EVERY):
            try:
                version = _write(url, owner, version)
            except StoreError as error:
                log.warning("the lease cannot be renewed: %s", error)
            except InUse as error:
                store.lost = error
                return

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        if not store.lost:
            _give_back(url)


def holder(store: Store) -> Owner | None:
    """Who works on a run in a store now, on whatever machine; None where nobody does."""
    lease = _found(f"{store.url}/{FILE}") if FILE in store.objects else None
    return lease.owner if lease and not lease.lapsed else None


def _taken(url: str, owner: Owner) -> str:
    """Take a lease that is free. Returns its version. Raises InUse."""
    lease = _found(url)
    if lease is None:
        return _write(url, owner, None)
    if not lease.lapsed:
        raise _in_use(url, lease.owner)
    log.warning("%s was held by %s, which is gone: its lease is taken over", url, lease.owner or "another process")
    return _write(url, owner, lease.object.version)


def _write(url: str, owner: Owner, version: str | None) -> str:
    """Write a lease that has this version, or that is not there. Returns its new version. Raises InUse where it has another."""
    condition: dict[str, Any] = {"IfMatch": version} if version else {"mode": "create"}
    data = json.dumps({**asdict(owner), "renewed": time.time()}).encode()
    with reached(url) as fs:
        try:
            fs.pipe_file(url, data, **condition)
        except OSError as error:
            if error.errno == errno.ENOSYS:  # a store without conditional writes
                fs.pipe_file(url, data)
            elif isinstance(error, FileExistsError) or error.errno == errno.EINVAL:
                lease = _found(url)
                if lease is None or lease.owner != owner:  # else it was written, and the answer was lost on its way
                    raise _in_use(url, lease and lease.owner) from None
            else:
                raise
        fs.invalidate_cache()
        return object_of(fs.info(url)).version


def _found(url: str) -> Lease | None:
    with reached(url) as fs:
        fs.invalidate_cache()
        if not fs.exists(url):
            return None
        told, data = object_of(fs.info(url)), fs.cat_file(url)
    try:
        facts = json.loads(data)
        return Lease(Owner(**{name: facts[name] for name in Owner.__dataclass_fields__}), told)
    except (ValueError, TypeError, KeyError):
        return Lease(None, told)


def _give_back(url: str) -> None:
    try:
        with reached(url) as fs:
            fs.rm_file(url)
    except StoreError as error:
        log.warning("the lease is not given back, and is free in %.0f s: %s", TERM, error)


def _in_use(url: str, owner: Owner | None) -> InUse:
    return InUse(
        f"{url.removesuffix('/' + FILE)} is in use by {owner or 'another process'}",
        f"Wait until it ends, or end it and run again: this goes on from there. Of a machine that is gone, the lease is free "
        f"{TERM / 60:.0f} minutes after its last word; or delete {url}.",
    )


def _is_alive(pid: int) -> bool:
    """Whether another process of this id lives here."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
