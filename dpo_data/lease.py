"""One machine at a time works on a run in an object store.

A store knows no processes, so this lock is a lease: an object that its holder writes anew every half minute. It is made by a
conditional write, so of two that begin at once one is refused. The lease of a process of this machine that is gone is free at
once. That of another is free when it was not renewed for five minutes, and is not renewed either while who wants it watches for
one more: a fast clock takes nothing from the living. Who could not renew a lease for almost so long renews it before the next
write, and so writes no more once another has it.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from dpo_data.errors import DpoDataError, InUse, StoreError
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
    """A lease as the store has it. `owner` is None where it cannot be read; `place` is where its process id counts."""

    owner: Owner | None
    place: str | None
    object: Object

    @property
    def is_left(self) -> bool:
        """Whether its holder ran where this process runs, and is gone."""
        return self.owner is not None and self.place == place() and not _is_alive(self.owner.pid)

    @property
    def is_silent(self) -> bool:
        """Whether its holder has not been heard of for too long, by this machine's clock."""
        return time.time() - (self.object.changed or 0) > TERM

    def is_of(self, owner: Owner) -> bool:
        """Whether it is that of a process of this place."""
        return (self.owner, self.place) == (owner, place())


class _Held:
    """A lease that this process holds, taken as this is made. Raises InUse, and StoreError."""

    def __init__(self, url: str):
        self._url, self._owner = url, this_process()
        self._writing = threading.Lock()
        self._version = _free(url)
        self.lost: DpoDataError | None = None
        self.renew()

    def renew(self) -> None:
        """Write it anew. Raises InUse where another has it."""
        with self._writing:
            began = _clock()
            try:
                self._version = _write(self._url, self._owner, self._version)
            except InUse as error:
                self.lost = error
                raise
            self._until = began + TERM - EVERY

    def may_write(self) -> None:
        """Raises what tells that it is lost."""
        if not self.lost and _clock() > self._until:
            self.renew()
        if self.lost:
            raise self.lost

    def renew_until(self, ended: threading.Event) -> None:
        """Renew it, now and then, until all is over or it is lost."""
        while not self.lost and not ended.wait(EVERY):
            try:
                self.renew()
            except StoreError as error:
                log.warning("the lease cannot be renewed: %s", error)
            except InUse:
                return
            except Exception as error:
                log.exception("the lease is not renewed any more")
                self.lost = StoreError(f"{self._url} is not renewed any more: {error!r}", "Run again: this goes on from there.")

    def give_back(self) -> None:
        try:
            lease = None if self.lost else _found(self._url)
            if lease and lease.is_of(self._owner):
                with reached(self._url) as fs:
                    fs.rm_file(self._url)
        except StoreError as error:
            log.warning("the lease is not given back, and is free in %.0f s: %s", TERM, error)


@contextmanager
def held(store: Store) -> Iterator[None]:
    """Hold the lease of a run while the block runs. Raises InUse, and StoreError. Who lost it writes nothing afterwards."""
    lease, ended = _Held(f"{store.url}/{FILE}"), threading.Event()
    store.may_write = lease.may_write
    renewing = threading.Thread(target=lease.renew_until, args=[ended], daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join(EVERY)  # no longer, where the store is silent: Ctrl-C ends this
        lease.give_back()
        if not lease.lost:
            store.may_write = lambda: None


def holder(store: Store) -> Owner | None:
    """Who works on a run in a store now, on whatever machine; None where nobody does."""
    lease = _found(f"{store.url}/{FILE}") if FILE in store.objects else None
    return lease.owner if lease and not (lease.is_left or lease.is_silent) else None


def place() -> str:
    """Where a process id means one process: a boot of a machine, or of a container's process ids; or the host's name, where the
    system tells no more."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _free(url: str) -> str | None:
    """The version of a lease that is free; None where there is no lease. Raises InUse."""
    lease = _found(url)
    if lease and not lease.is_left:
        if not lease.is_silent:
            raise _in_use(url, lease.owner)
        who = lease.owner or "another process"
        log.warning("%s was held by %s, unheard of for long: waiting %.0f s for a word of it", url, who, 2 * EVERY)
        time.sleep(2 * EVERY)
        before, lease = lease.object.version, _found(url)
        if lease and lease.object.version != before:
            raise _in_use(url, lease.owner)
    if lease is None:
        return None
    log.warning("%s was held by %s, which is gone: its lease is taken over", url, lease.owner or "another process")
    return lease.object.version


def _write(url: str, owner: Owner, version: str | None) -> str:
    """Write a lease that has this version, or that is not there. Returns its new version. Raises InUse where it has another."""
    condition: dict[str, Any] = {"IfMatch": version} if version else {"mode": "create"}
    data = json.dumps({**asdict(owner), "place": place(), "renewed": time.time()}).encode()
    with reached(url) as fs:
        try:
            fs.pipe_file(url, data, **condition)
        except OSError as error:
            if error.errno == errno.ENOSYS:  # a store without conditional writes
                lease = _found(url)
                if lease and not lease.is_of(owner) and lease.object.version != version:
                    raise _in_use(url, lease.owner) from None
                fs.pipe_file(url, data)
            elif isinstance(error, FileNotFoundError) and version:  # somebody deleted it
                return _write(url, owner, None)
            elif isinstance(error, FileExistsError) or error.errno == errno.EINVAL:
                lease = _found(url)
                if lease is None or not lease.is_of(owner):  # else it was written, and the answer was lost on its way
                    raise _in_use(url, lease and lease.owner) from None
            else:
                raise
    written = _found(url)
    if written is None:  # somebody deleted it since
        return _write(url, owner, None)
    if not written.is_of(owner):
        raise _in_use(url, written.owner)
    return written.object.version


def _found(url: str) -> Lease | None:
    with reached(url) as fs:
        fs.invalidate_cache()
        try:
            told, data = object_of(fs.info(url)), fs.cat_file(url)
        except FileNotFoundError:
            return None
    try:
        facts = json.loads(data)
        owner = Owner(**{name: facts[name] for name in Owner.__dataclass_fields__})
        return Lease(owner, facts.get("place"), told)
    except (ValueError, TypeError, KeyError):
        return Lease(None, None, told)


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


def _clock() -> float:
    """Seconds, those too in which the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
