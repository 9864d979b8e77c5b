"""A repository on the Hugging Face Hub, of a dataset or a model, written to: one commit a push, and a tag on it.

The client's own retries cover uploads alone, so one 503 in answer to a commit would end a run. Here every other request is
tried again with growing pauses; what fails for good is a PublishError with its remedy. The token is never ours to hold: the
client takes it from HF_TOKEN, or from where `hf auth login` keeps it.
"""

import hashlib
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from dpo_data.errors import PublishError
from dpo_data.provenance import file_hash
from dpo_data.rows import batched

TRIES = 5
PAUSE = 1.0
"""Seconds before the second try. They double from try to try, and up to half as much again is added by chance."""
LONGEST_PAUSE = 120.0
"""Seconds that a Retry-After is obeyed for at most."""

PASSING = frozenset({408, 412, 429, 500, 502, 503, 504})
"""The answers that another try may mend; 412 is somebody else's commit at the same time."""

REFUSALS = {
    401: ("The Hub does not know this token", "Log in anew with `hf auth login`, or mend HF_TOKEN."),
    403: (
        "This token may not {what}",
        "Use a token that may write there, or another {key}; `hf auth whoami` tells the token's namespaces.",
    ),
    404: (
        "The Hub has no such place to {what}, or does not show it to this token",
        "Mend {key}; `hf auth whoami` tells the token's namespaces.",
    ),
}
"""What an answer's status means, and the remedy."""

MARK = "dpo-data"
"""The tag in a card's front matter by which a repository is known as ours."""

Kind = Literal["dataset", "model"]
KEYS: dict[Kind, str] = {"dataset": "publish.repo_id", "model": "publish.model_repo_id"}
"""The recipe's key that names a repository, by its kind."""

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


def page(kind: Kind, repo_id: str) -> str:
    """A repository's address. A model's has no word before its name."""
    return f"{_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"


def _endpoint() -> str:
    """The Hub's address, without a user or password in it."""
    from huggingface_hub import constants

    return re.sub("//[^/]*@", "//", constants.ENDPOINT)


def require_token() -> None:
    """Raises PublishError where nobody is logged in. Asks nothing of the network."""
    from huggingface_hub import get_token

    if not get_token():
        raise PublishError("No token for the Hugging Face Hub", "Log in with `hf auth login`, or set HF_TOKEN; then run again.")


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository that is there and may be seen. `revision` is the branch that pushes go to. `open_repo` makes one."""

    api: Any
    kind: Kind
    repo_id: str
    revision: str
    private: bool

    @property
    def url(self) -> str:
        return page(self.kind, self.repo_id)

    def push(
        self,
        files: Mapping[str, Path],
        owned: Callable[[str], bool],
        tag: str,
        message: str,
        done: Callable[[int], None] = lambda files: None,
    ) -> str:
        """Make one commit of these files, by their paths in the repository, and tag it. Returns the commit.

        Deletes the files that are `owned` and not among these. What is stored already is not sent again; where nothing is to
        change there is no new commit. A push that was made before is only looked at. `done` hears how many files are stored.
        Raises PublishError where the tag stands on something else: what is tagged never changes.
        """
        tagged = self.tagged(tag)
        if tagged:
            if not self.holds(tagged, files):
                raise self._taken(tag)
            return tagged
        self._upload(files, done)
        commit = self._commit(files, owned, message)
        if not self.holds(commit, files):
            raise PublishError(
                f"{self.repo_id} at {commit} does not hold all that was pushed",
                "Delete its .gitignore on the Hub, and run again.",
            )
        where = {"repo_type": self.kind, "revision": commit, "exist_ok": True}
        self._ask("tag", lambda: self.api.create_tag(self.repo_id, tag=tag, **where))
        if self.tagged(tag) != commit:
            raise self._taken(tag)
        return commit

    def tagged(self, tag: str) -> str | None:
        """The commit that a tag stands on; None where there is no such tag."""
        refs = self._ask("list the tags of", lambda: self.api.list_repo_refs(self.repo_id, repo_type=self.kind))
        return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)

    def holds(self, commit: str, files: Mapping[str, Path]) -> bool:
        """Whether these files stand at that commit, byte for byte."""
        where = {"repo_type": self.kind, "revision": commit}
        found = self._ask("read", lambda: self.api.get_paths_info(self.repo_id, sorted(files), **where))
        there = {one.path: one for one in found}
        return all(path in there and _is_same(there[path], file) for path, file in files.items())

    def _upload(self, files: Mapping[str, Path], done: Callable[[int], None]) -> None:
        """Store the content that a commit will name, a few files at a time. The client tries again by itself."""
        from huggingface_hub import CommitOperationAdd

        where = {"repo_type": self.kind, "revision": self.revision, "free_memory": False}
        stored = 0
        for few in batched(files.items(), 8):
            adds = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in few]
            self._ask("upload to", partial(self.api.preupload_lfs_files, self.repo_id, adds, **where), tries=1)
            stored += len(few)
            done(stored)

    def _commit(self, files: Mapping[str, Path], owned: Callable[[str], bool], message: str) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def once() -> str:
            """Looks anew at the branch, which somebody else, or a try whose answer was lost, may have moved."""
            head = self.api.repo_info(self.repo_id, repo_type=self.kind, revision=self.revision)
            there = [one.rfilename for one in head.siblings]
            made = self.api.create_commit(
                self.repo_id,
                [
                    *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()),
                    *(CommitOperationDelete(path_in_repo=path) for path in there if owned(path) and path not in files),
                ],
                repo_type=self.kind,
                revision=self.revision,
                parent_commit=head.sha,
                commit_message=message,
            )
            return str(made.oid)

        return self._ask("commit to", once)

    def _taken(self, tag: str) -> PublishError:
        return PublishError(
            f"The tag {tag!r} of {self.repo_id} stands on another commit",
            "What is tagged never changes: name this push with another publish.tag.",
        )

    def _ask(self, what: str, call: Callable[[], Answer], tries: int = TRIES) -> Answer:
        return patiently(f"{what} {self.repo_id}", call, KEYS[self.kind], tries)


def open_repo(kind: Kind, repo_id: str, revision: str, private: bool) -> Repo:
    """The repository with its branch, made where they are not there. One that is private stays so.

    Raises PublishError where it is public and `private` is asked for, or where its card is not one of ours.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # ours tells how far a push is
    api, key = HfApi(), KEYS[kind]
    of = {"repo_id": repo_id, "repo_type": kind}
    look = f"look at {repo_id}"
    patiently("ask whose it is", api.whoami, key)
    if not patiently(look, lambda: api.repo_exists(**of), key):
        patiently(f"make {repo_id}", lambda: api.create_repo(**of, private=private, exist_ok=True), key)
    found = patiently(look, lambda: api.repo_info(**of), key)
    if private and not found.private:
        raise PublishError(
            f"{repo_id} is public, and publish.private is true",
            f"Make it private in its settings on the Hub, name another {key}, or set publish.private = false.",
        )
    if found.private and not private:
        log.warning("%s is private and stays so; change that in its settings on the Hub", repo_id)
    if not patiently(look, lambda: api.revision_exists(**of, revision=revision), key):
        patiently(f"make a branch in {repo_id}", lambda: api.create_branch(**of, branch=revision, exist_ok=True), key)
    head = patiently(look, lambda: api.repo_info(**of, revision=revision), key)
    tags = getattr(head.card_data, "tags", None) or []
    if MARK not in tags and any(one.rfilename == "README.md" for one in head.siblings):
        raise PublishError(
            f"{repo_id} holds a {kind} card that dpo-data did not write",
            f"Name another {key}; or delete that README.md on the Hub, if this {kind} may take its place.",
        )
    return Repo(api, kind, repo_id, revision, bool(found.private))


def patiently(what: str, call: Callable[[], Answer], key: str, tries: int = TRIES) -> Answer:
    """The Hub's answer, asked for again while it fails for a moment. Raises PublishError when it fails for good; `key` is the
    recipe's that names the repository."""
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    for tried in range(1, tries + 1):
        try:
            return call()
        except (HTTPError, RuntimeError) as raised:
            error = raised if isinstance(raised, HTTPError) else raised.__cause__  # an upload's error is within another one
            if not isinstance(error, HTTPError):
                raise
            response = getattr(error, "response", None)
            status = response.status_code if response is not None else None
            if tried == tries or (status is not None and status not in PASSING):
                raise _refused(what, error, status, key) from None
            pause = _pause(tried, response.headers.get("Retry-After") if response is not None else None)
            log.warning("The Hub does not %s (%s); trying again in %.1f s", what, status or type(error).__name__, pause)
            time.sleep(pause)
        except OfflineModeIsEnabled:
            raise PublishError("HF_HUB_OFFLINE is set, so the Hub is not asked", "Unset it to publish.") from None
        except HFValidationError as error:
            raise PublishError(f"The Hub takes no such name: {error}", f"Mend {key}.") from None
    raise AssertionError("at least one try is made")


def _refused(what: str, error: Any, status: int | None, key: str) -> PublishError:
    """The last error in plain words. Of a failed connection only its kind: its text may quote headers, the token among them."""
    from huggingface_hub import get_token

    if status in REFUSALS:
        meaning, remedy = REFUSALS[status]
        return PublishError(meaning.format(what=what), remedy.format(key=key))
    if status is None:
        return PublishError(
            f"The Hub at {_endpoint()} cannot be reached ({type(error).__name__})",
            "Check the network, and HF_ENDPOINT where it is set; then run again: what is finished is kept.",
        )
    said = str(error.server_message or error).replace(get_token() or "\0", "…")
    return PublishError(
        f"The Hub answered {status} when asked to {what}: {said}", "Run again later: what is stored already is not sent again."
    )


def _pause(tried: int, retry_after: str | None) -> float:
    """Seconds until the next try: what the Hub asks for, as a number of seconds or a date, else growing ones."""
    if retry_after is None:
        return PAUSE * float(2 ** (tried - 1)) * random.uniform(1, 1.5)
    try:
        asked = float(retry_after)
    except ValueError:
        asked = parsedate_to_datetime(retry_after).timestamp() - time.time()
    return min(max(asked, 0.0), LONGEST_PAUSE)


def _is_same(stored: Any, file: Path) -> bool:
    """Whether the Hub's facts of a file tell this one's content: its SHA-256 where LFS keeps it, else git's own SHA-1."""
    if stored.lfs:
        return bool(stored.lfs.sha256 == file_hash(file))
    content = file.read_bytes()
    return bool(stored.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())
