"""The test hub behaves to the real clients as the Hub does; and what of the clients the code works around."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hub import TOKEN, Fault, HubServer, reading
from hub.clients import client, in_client

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Runs a function where the clients talk to the hub."""
    with client(hub_server.environment(tmp_path_factory.mktemp("home"))) as call:
        yield call


@pytest.fixture
def repo(hub: HubServer, request: pytest.FixtureRequest) -> str:
    """A new private dataset repository of the tester's."""
    name = f"tester/{request.node.name}"
    hub.repo(name).create(True, "tester", {})
    return name


def put(repo: str, path: str, data: bytes, **more: Any) -> str:
    """Commit one file. Returns the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    add = CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
    return str(HfApi().create_commit(repo, [add], repo_type="dataset", commit_message=f"add {path}", **more).oid)


def get(repo: str, path: str, revision: str = "main") -> bytes:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, path, repo_type="dataset", revision=revision)).read_bytes()


def status(call: Callable[[], Any]) -> tuple[int, str]:
    """The status and the kind of the error that a call raises."""
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError) as error:
        call()
    return error.value.response.status_code, type(error.value).__name__


def who_may_do_what(repo: str, wrong: str) -> None:
    from huggingface_hub import HfApi

    api, stranger, nobody = HfApi(), HfApi(token=wrong), HfApi(token=False)
    assert api.whoami()["name"] == "tester" and [org["name"] for org in api.whoami()["orgs"]] == ["lab"]
    assert api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True).repo_id == repo
    assert status(lambda: api.create_repo(repo, repo_type="dataset")) == (409, "HfHubHTTPError")
    assert status(lambda: api.create_repo("other/theirs", repo_type="dataset")) == (403, "HfHubHTTPError")
    assert api.repo_info(repo, repo_type="dataset").private
    for call in (stranger.whoami, partial(stranger.repo_info, repo, repo_type="dataset")):
        assert status(call) == (401, "HfHubHTTPError")
    assert status(lambda: nobody.repo_info(repo, repo_type="dataset")) == (401, "RepositoryNotFoundError")
    public = api.create_repo(f"{repo}-public", repo_type="dataset").repo_id
    assert nobody.repo_info(public, repo_type="dataset").id == public
    assert status(lambda: put(public, "x.txt", b"x", token=False))[0] == 401


def test_accounts_and_visibility(ask: Ask, repo: str) -> None:
    ask(who_may_do_what, repo, "hf_wrong")


def revisions_never_change(repo: str) -> None:
    from huggingface_hub import CommitOperationDelete, HfApi
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    api = HfApi()
    one = put(repo, "value.bin", b"one\0")
    assert put(repo, "value.bin", b"one\0") == one, "nothing changed: no commit"
    api.create_tag(repo, tag="v1", repo_type="dataset")
    two = put(repo, "value.bin", b"two\0")
    assert status(lambda: put(repo, "b.txt", b"b", parent_commit=one)) == (412, "HfHubHTTPError")
    delete = [CommitOperationDelete("value.bin")]
    three = api.create_commit(repo, delete, repo_type="dataset", commit_message="rm").oid
    assert [get(repo, "value.bin", revision) for revision in ("v1", one, two)] == [b"one\0", b"one\0", b"two\0"]
    with pytest.raises(EntryNotFoundError):
        get(repo, "value.bin")
    with pytest.raises(RevisionNotFoundError):
        get(repo, "value.bin", "v9")
    assert [c.commit_id for c in api.list_repo_commits(repo, repo_type="dataset")][:3] == [three, two, one]
    assert status(lambda: api.create_tag(repo, tag="v1", repo_type="dataset")) == (409, "HfHubHTTPError")
    api.create_tag(repo, tag="v1", repo_type="dataset", exist_ok=True)
    assert api.repo_info(repo, repo_type="dataset", revision="v1").sha == one, "exist_ok keeps the old target"
    api.create_branch(repo, branch="side/a", repo_type="dataset", revision="v1")
    put(repo, "b.txt", b"b", revision="side/a")
    assert get(repo, "value.bin", "side/a") == b"one\0"


def test_commits_tags_and_branches(ask: Ask, repo: str) -> None:
    ask(revisions_never_change, repo)


def what_lfs_refuses(repo: str, url: str, token: str) -> None:
    from huggingface_hub.utils import get_session

    headers, oid = {"authorization": f"Bearer {token}"}, "0" * 64
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": {"path": "a.bin", "oid": oid}}]
    body = "\n".join(map(json.dumps, lines))
    assert get_session().post(f"{url}/api/datasets/{repo}/commit/main", headers=headers, content=body).status_code == 400
    batch = {"objects": [{"oid": oid, "size": 3}]}
    answer = get_session().post(f"{url}/datasets/{repo}.git/info/lfs/objects/batch", headers=headers, json=batch)
    href = answer.json()["objects"][0]["actions"]["upload"]["href"]
    assert [get_session().put(link, content=b"abc").status_code for link in (href, href[:-1])] == [400, 403]
    assert get_session().get(f"{url}/api/datasets/..%2F..%2Foutside/x/refs").status_code == 400


def test_lfs_takes_only_what_was_announced(ask: Ask, hub: HubServer, repo: str) -> None:
    ask(what_lfs_refuses, repo, hub.url, TOKEN)
    assert not list(hub.root.rglob("*.part"))


def ten_files(repo: str) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    adds = [CommitOperationAdd(f"d/{at}.txt", str(at).encode()) for at in range(10)]
    HfApi().create_commit(repo, adds, repo_type="dataset", commit_message="ten")
    assert len(HfApi().list_repo_files(repo, repo_type="dataset")) == 10
    found = HfApi().get_paths_info(repo, ["d", "d/3.txt", "no"], repo_type="dataset")
    assert {one.path for one in found} == {"d", "d/3.txt"}


def test_trees_come_in_pages(ask: Ask, hub: HubServer, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE_SIZE", 4)
    ask(ten_files, repo)
    assert len(hub.lines("/tree/")) == 3


def push_twice(repo: str) -> None:
    from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset
    from huggingface_hub import HfApi

    def rows(n: int) -> Dataset:
        return Dataset.from_dict({"x": list(range(n))})

    rows(9).push_to_hub(repo, "alpha", split="train", num_shards=3)
    DatasetDict({"train": rows(3), "test": rows(2)}).push_to_hub(repo, "beta")
    HfApi().create_tag(repo, tag="v1", repo_type="dataset")
    rows(7).push_to_hub(repo, "alpha", split="train", num_shards=1)
    assert [len(load_dataset(repo, "alpha", split="train", revision=rev)) for rev in ("v1", "main")] == [9, 7]
    assert {split: len(of) for split, of in load_dataset(repo, "beta", revision="v1").items()} == {"train": 3, "test": 2}
    assert sorted(get_dataset_config_names(repo)) == ["alpha", "beta"]
    files = HfApi().list_repo_files(repo, repo_type="dataset")
    assert [path for path in files if path.startswith("alpha")] == ["alpha/train-00000-of-00001.parquet"]


def test_datasets_pushes_and_loads_by_tag(ask: Ask, repo: str) -> None:
    ask(push_twice, repo)


def test_a_cut_upload_is_sent_again_by_the_client(ask: Ask, hub: HubServer, repo: str) -> None:
    hub.hub.faults.append(Fault(match="^PUT ", kind="drop_request", after=1_000_000))
    data = os.urandom(3_000_000)
    ask(put, repo, "a.bin", data)
    assert [line.split()[-1] for line in hub.lines("_storage/put")] == ["drop_request", "200"]
    assert ask(get, repo, "a.bin") == data


def test_a_commit_whose_answer_is_lost_has_happened_and_is_made_once(ask: Ask, hub: HubServer, repo: str) -> None:
    hub.hub.faults.append(Fault(match="POST .*/commit/", kind="drop_response"))
    with pytest.raises(Exception, match=r"disconnected|closed|reset"):
        ask(put, repo, "a.txt", b"a")
    assert ask(get, repo, "a.txt") == b"a"
    stored = hub.repo(repo)
    assert ask(put, repo, "a.txt", b"a") == stored.meta["branches"]["main"]
    assert len(stored.history(stored.meta["branches"]["main"])) == 2


def loaded(repo: str, revision: str) -> tuple[int, str]:
    """How many rows, and from which file of the cache."""
    from datasets import load_dataset

    found = load_dataset(repo, split="train", revision=revision)
    return len(found), found.cache_files[0]["filename"]


def push(repo: str, rows: int, tag: str) -> None:
    from datasets import Dataset
    from huggingface_hub import HfApi

    Dataset.from_dict({"x": list(range(rows))}).push_to_hub(repo, split="train")
    HfApi().create_tag(repo, tag=tag, repo_type="dataset")


def test_datasets_gives_another_revision_when_the_hub_refuses(ask: Ask, hub: HubServer, repo: str, tmp_path: Path) -> None:
    """Why tests look for the commit in `cache_files`: any failure, and the newest cached revision comes without an error."""
    ask(push, repo, 3, "v1")
    ask(push, repo, 8, "v2")
    wanted, home = hub.repo(repo).resolve("v2"), hub.environment(tmp_path)
    assert in_client(home, loaded, repo, "v1")[0] == 3
    count, file = in_client(home | {"HF_TOKEN": "hf_wrong"}, loaded, repo, "v2")
    assert count == 3 and wanted not in file
    count, file = in_client(home, loaded, repo, "v2")
    assert count == 8 and wanted in file
