"""A folder of an object store, and its working copy on this machine.

All code works on the copy, a folder like any other. What is made there goes to the store file by file, and an object appears
there when all of it has arrived, so nothing needs a rename. What the store has is brought when it is asked for, and it is the
truth: what it has otherwise is brought anew, and what it has no more goes from the copy. What it never had stays, and goes up
next time, except in a stage that was begun anew elsewhere. In a copy that another process works in, only what is missing is
brought: that process knows better than a listing that is a moment old.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dpo_data import copies, lock
from dpo_data.copies import Known
from dpo_data.errors import InputError, StoreError
from dpo_data.files import appear, room
from dpo_data.rows import batched

AT_ONCE = 64
"""How many files are on the way at a time."""

PATIENCE = {"retries": {"mode": "standard", "max_attempts": 5}, "connect_timeout": 10, "read_timeout": 20}
"""For botocore, which asks five times, over 15 s at most, where S3 answers 500, 503 or 429, or does not answer. s3fs does all
that up to five times where the store asks to slow down, cannot be reached, or is silent: 500 s of silence, and the pauses."""

LIVING = re.compile(r"(.*/)?(calls\.sqlite|logs/.*)")
"""Files that grow while a run goes on, and are put into the store now and then: what this machine has of them is newer."""

STAYS = re.compile(r"(.*/)?(\..*|SHA256SUMS|calls\.sqlite-\w+)")
"""Files that no store gets: unfinished ones, locks, and what only tells of files on this machine."""


class Object(NamedTuple):
    """What a listing tells of an object. `version` is another for other bytes; `changed`: seconds of the epoch, if it tells."""

    version: str
    bytes: int
    changed: float | None


def is_url(path: str | Path) -> bool:
    """Whether a run directory, or a model's folder, is in a store."""
    return "://" in str(path)


def local(place: str) -> Path:
    """A folder on this machine: where one is named by a URL, its whole working copy."""
    if not is_url(place):
        return Path(place).expanduser()
    store = Store(place)
    store.bring(".*")
    return store.folder


@contextmanager
def reached(url: str) -> Iterator[Any]:
    """The file system that a URL is in. Raises StoreError for what goes wrong there, without the library's own traceback."""
    try:
        yield _file_system(url)
    except NotImplementedError as error:
        raise StoreError(f"The file system of {url} cannot do all that a run needs", "Use s3://.") from error
    except _failures() as error:
        said = (getattr(error, "strerror", None) or str(error)).partition("\n")[0] or type(error).__name__
        raise StoreError(f"{url} cannot be reached: {said}", _remedy(url, error)) from None


def _file_system(url: str) -> Any:
    import fsspec

    scheme = url.partition("://")[0]
    options = {"config_kwargs": PATIENCE, **fsspec.config.conf.get("s3", {})} if scheme in ("s3", "s3a") else {}
    try:
        return fsspec.core.url_to_fs(url, **options)[0]
    except (ImportError, ValueError) as error:
        remedy = "Run `pip install 'dpo-data[s3]'`." if options else "Install what it needs, or use s3://."
        raise StoreError(f"Nothing here knows {scheme}:// ({error})", remedy) from None


class Store:
    """The objects below a URL; `folder` is their working copy. Names are paths in it, as `1-sample/00000.parquet`.

    Raises InputError for a URL that names no folder in a bucket. All that asks the store raises StoreError. `may_write` is
    called before each object is put or deleted, and raises where somebody else does so now.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        scheme, _, place = self.url.partition("://")
        if "@" in place:  # a secret may hold slashes
            raise InputError(f"A {scheme}:// URL with a user or key in it", "Give keys by the environment or a profile.")
        if not re.fullmatch(r"\w+", scheme) or len(parts := place.split("/")) < 2 or {"", ".", ".."} & set(parts):
            raise InputError(f"{self.url} names no folder in a bucket", "Name one, as s3://bucket/runs/demo.")
        self.folder = copies.folder(scheme, place)
        self.may_write: Callable[[], None] = lambda: None
        self._objects: dict[str, Object] | None = None
        self._brought: set[str] = set()

    @property
    def objects(self) -> dict[str, Object]:
        """All objects, by name: as the store listed them when it was first asked, and as they were put since."""
        if self._objects is None:
            self._objects = self._listed(self.url)
        return self._objects

    def refresh(self) -> None:
        """Forget what the store told, which is asked anew."""
        self._objects = None
        self._brought.clear()

    def bring(self, pattern: str) -> list[str]:
        """Have the copy hold what the store has, of the names that match a pattern; what is missing alone, where another works
        in it. Returns what was fetched. Done once."""
        if pattern in self._brought:
            return []
        listed, known = [name for name in self.objects if re.fullmatch(pattern, name)], copies.known(self.url)
        if self._is_in_use():  # asked last: who put what is known and was not listed is there now
            wanted = [name for name in listed if not (self.folder / name).exists()]
        else:
            known = self._forget(pattern, known)
            wanted = [name for name in listed if not self._is_here(name, known.get(name))]
        for some in batched(wanted, AT_ONCE):
            self._fetch(some)
        self._brought.add(pattern)
        return wanted

    def put(self, *files: Path) -> None:
        """Have the store hold these files of the copy, in this order. Each appears when all of it has arrived."""
        for file in files:
            self._put(self._name(file), file)

    def push(self, path: Path) -> None:
        """Have the store hold a file or folder of the copy as it is: what is new or changed goes up, recipe.json first and the
        rest in the order in which it was written, then trainer_state.json, by which a checkpoint counts, the newest first: an
        older one may have been half deleted. Then what is gone goes; manifest.json comes last."""
        self.bring(pattern := self.all_of(path))
        files = {name: facts for file, facts in copies.files(path).items() if not STAYS.fullmatch(name := self._name(file))}
        if (recipe := f"{self._name(path)}/recipe.json") in self.objects and recipe not in files:
            raise StoreError(
                f"{path}, the working copy of {self.url}, is gone", "Run again: what the store has is brought anew."
            )
        known = {name: one for name, one in copies.known(self.url).items() if name in self.objects}
        new = [name for name, facts in files.items() if name not in known or not known[name].is_still(facts)]
        last = [name for name in new if name.endswith("/manifest.json")]
        ordered = sorted(set(new) - set(last), key=lambda name: _order(name, files[name].st_mtime_ns))
        with room(self.folder), copies.held(self.folder / name for name in ordered) as held:
            for file, link in held.items():
                self._put(self._name(file), link)
        self.drop(name for name in list(self.objects) if re.fullmatch(pattern, name) and name not in files)
        self.put(*(self.folder / name for name in last))

    def all_of(self, path: Path) -> str:
        """The pattern of a file or folder of the copy. What was brought by it, and deleted here since, `push` deletes."""
        return re.escape(self._name(path)) + "(/.*)?"

    def size(self, path: Path) -> int | None:
        """The bytes that the store has of a file of the copy; None where it has none."""
        found = self.objects.get(self._name(path))
        return found and found.bytes

    def drop(self, names: Iterable[str]) -> None:
        """Delete objects: each by a request of its own, for s3fs does not tell which of many a store has refused to delete."""
        for some in batched(names, AT_ONCE):
            self.may_write()
            with reached(self.url) as fs, ThreadPoolExecutor(8) as pool:
                list(pool.map(fs.rm_file, map(self._url, some)))
            for name in some:
                self.objects.pop(name, None)
            copies.note(self.url, dict.fromkeys(some))

    def beside(self) -> list[str]:
        """The URLs of the folders beside this one."""
        parent, _, own = self.url.rpartition("/")
        with reached(parent) as fs:
            fs.invalidate_cache()
            found = fs.ls(parent, detail=True) if fs.exists(parent) else []
        names = [one["name"].rstrip("/").rpartition("/")[2] for one in found if one["type"] == "directory"]
        return [f"{parent}/{name}" for name in sorted(names) if name != own]

    def _listed(self, url: str) -> dict[str, Object]:
        with reached(url) as fs:
            fs.invalidate_cache()
            root = fs._strip_protocol(self.url) + "/"
            found = fs.find(url, detail=True)
        files = {path: info for path, info in found.items() if path.startswith(root) and not path.endswith("/")}
        objects = {path.removeprefix(root): object_of(info) for path, info in files.items()}
        if astray := next((name for name in objects if {"", ".", ".."} & set(name.split("/"))), None):
            raise InputError(f"{url} holds {astray!r}, which would lie elsewhere on this machine", "Delete that object.")
        return objects

    def _is_in_use(self) -> bool:
        """Whether another process, or another thread of this one, works in the copy."""
        folder = self.folder.resolve()
        return folder not in lock.HELD.get() and lock.holder(folder) is not None

    def _forget(self, pattern: str, known: dict[str, Known]) -> dict[str, Known]:
        """Take out of the copy what is no more in the store. Returns what is known of the rest."""
        self._forget_stages(known)
        known = copies.known(self.url)
        gone = [name for name in known if re.fullmatch(pattern, name) and name not in self.objects]
        for name in gone:
            (self.folder / name).unlink(missing_ok=True)
        copies.note(self.url, dict.fromkeys(gone))
        return known

    def _forget_stages(self, known: dict[str, Known]) -> None:
        """Take those out of the copy that elsewhere were deleted, or begun anew with another recipe: nothing of them holds."""
        for recipe in [path for path in self.folder.glob("*/recipe.json")]:
            name = self._name(recipe)
            found, before = self.objects.get(name), known.get(name)
            if (found or before) and (found and found.version) != (before and before.version):
                shutil.rmtree(recipe.parent)
                copies.note(self.url, dict.fromkeys(one for one in known if one.startswith(f"{recipe.parent.name}/")))

    def _put(self, name: str, file: Path) -> None:
        self.may_write()
        facts, url = file.stat(), self._url(name)
        with reached(url) as fs:
            fs.put_file(str(file), url)
            told = object_of(fs.info(url))
        self.objects[name] = told
        copies.note(self.url, {name: Known(told.version, facts.st_size, facts.st_mtime_ns)})

    def _fetch(self, names: list[str]) -> None:
        """Download files, which each appear whole, with the times of their objects. Who fetches one of them at the same time,
        as `status` may beside a run, does so in another folder."""
        with room(self.folder), copies.on_the_way() as folder:
            partials = [folder / str(at) for at in range(len(names))]
            with reached(self.url) as fs, room(self.folder):
                one_by_one = {"max_concurrency": 1} if "s3" in fs.protocol else {}  # s3fs tries no part of several again
                fs.get([self._url(name) for name in names], [str(partial) for partial in partials], **one_by_one)
            for name, partial in zip(names, partials, strict=True):
                self._arrive(name, partial)

    def _arrive(self, name: str, partial: Path) -> None:
        made, file = self.objects[name], self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if made.changed is not None:
            os.utime(partial, (made.changed, made.changed))
        for journal in file.parent.glob("calls.sqlite-*") if file.name == "calls.sqlite" else ():
            journal.unlink()  # of the file that was here
        facts = partial.stat()
        appear(partial, file)
        copies.note(self.url, {name: Known(made.version, facts.st_size, facts.st_mtime_ns)})

    def _is_here(self, name: str, known: Known | None) -> bool:
        """Whether the copy has what the store has, or what came of it."""
        file = self.folder / name
        if known is None or known.version != self.objects[name].version or not file.is_file():
            return False
        return known.is_still(file.stat()) or bool(LIVING.fullmatch(name))

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def object_of(info: dict[str, Any]) -> Object:
    """What a file system tells of an object, in few words."""
    changed: Any = info.get("LastModified") or info.get("created") or info.get("mtime")
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else changed
    return Object(str(info.get("ETag") or [info["size"], seconds]), info["size"], seconds)


def _order(name: str, changed_ns: int) -> tuple[bool, bool, int]:
    """Sorts what makes others count: a recipe comes before its shards, a trainer's state after the weights that it is of."""
    state = name.endswith("/trainer_state.json")
    return not name.endswith("/recipe.json"), state, -changed_ns if state else changed_ns


def _failures() -> tuple[type[Exception], ...]:
    """What a file system raises, and S3's libraries besides."""
    try:
        from aiohttp import ClientError as HttpError
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return (OSError,)
    return OSError, BotoCoreError, ClientError, HttpError


def _remedy(url: str, error: Exception) -> str:
    bucket = url.partition("://")[2].partition("/")[0]
    if isinstance(error, FileNotFoundError):
        return f"Make the bucket {bucket}, or check the URL and AWS_ENDPOINT_URL."
    if isinstance(error, PermissionError) or "credentials" in type(error).__name__.lower():
        return (
            "Log in: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of somebody who may list, read, write "
            f"and delete in {bucket}."
        )
    return "Check network and AWS_ENDPOINT_URL, and run again: what has arrived is kept."
