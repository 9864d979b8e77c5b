"""Prompts from a dataset on the Hub: the rows of one commit, or an error; never another commit's."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Fault, HubServer
from hub.clients import client, in_client

from dpo_data.errors import InputError
from dpo_data.formats.prompts import Prompts, evaluation_texts, prompts_hash, read_given, read_prompts

Ask = Callable[..., Any]
REPO = "tester/prompts"
HERE = f"hf://datasets/{REPO}"
CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train.jsonl}
  - {split: test, path: plain/test.jsonl}
- config_name: rated
  data_files: [{split: train, path: rated.jsonl}]
---
"""


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def files(word: str) -> dict[str, bytes]:
    rated = {"prompt": f"{word}?", "completions": [{"text": "a", "score": 2.0}, {"text": "b", "score": 1.0}]}
    return {
        "README.md": CARD.encode(),
        "plain/train.jsonl": lines({"prompt": f"{word} 1", "truth": 1}, {"prompt": f"{word} 2"}),
        "plain/test.jsonl": lines({"prompt": f"{word} test"}),
        "rated.jsonl": lines(rated),
    }


@pytest.fixture(scope="module")
def commits(hub_server: HubServer) -> list[str]:
    """Two commits of a dataset; `main` is the second, `v1` the first."""
    repo = hub_server.repo(REPO)
    repo.create(False, "tester", files("old"))
    old = repo.resolve("main")
    new = repo.commit("main", {path: repo.add(data) for path, data in files("new").items()}, "new", "", "tester")
    repo.meta["tags"]["v1"] = old
    repo.save()
    return [old, new]


@pytest.fixture(scope="module")
def ask(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Runs a function where the clients talk to the hub."""
    with client(hub_server.environment(tmp_path_factory.mktemp("home"))) as call:
        yield call


def texts(prompts: Prompts) -> list[tuple[str, str]]:
    return [(row.source, row.prompt[0]["content"]) for row in read_prompts(prompts)]


def references(prompts: Prompts) -> list[str | None]:
    return [row.reference for row in read_prompts(prompts)]


def scores(prompts: Prompts) -> list[tuple[str, list[float | None]]]:
    return [(prompt.prompt[0]["content"], [answer.score for answer in answers]) for prompt, answers in read_given(prompts)]


def evaluation(path: str) -> list[tuple[str, str]]:
    return list(evaluation_texts(path))


def test_a_dataset_is_read_at_its_revision(ask: Ask, hub: HubServer, commits: list[str]) -> None:
    old, new = commits
    plain = Prompts(path=HERE, name="plain")
    assert ask(prompts_hash, plain) == new
    assert ask(texts, plain) == [(f"{REPO}@{new[:7]}:train:1", "new 1"), (f"{REPO}@{new[:7]}:train:2", "new 2")]
    for revision in ("v1", old):
        of_old = plain.model_copy(update={"revision": revision, "split": "test"})
        assert ask(prompts_hash, of_old) == old
        assert ask(texts, of_old) == [(f"{REPO}@{old[:7]}:test:1", "old test")]
    assert ask(scores, Prompts(path=HERE, name="rated")) == [("new?", [2.0, 1.0])]
    path = f"{HERE}?name=plain&split=test&revision=v1"
    assert ask(evaluation, path) == [(f"{HERE}, row 1", "old test")]
    assert ask(prompts_hash, Prompts(path=path)) == old


def test_a_column_that_no_shape_knows_is_read_where_it_holds_the_references(
    ask: Ask, hub: HubServer, commits: list[str]
) -> None:
    assert ask(references, Prompts(path=HERE, name="plain", reference="truth")) == ["1", None]
    assert ask(references, Prompts(path=HERE, name="plain")) == [None, None]


def test_a_full_commit_needs_no_network_once_it_is_there(hub: HubServer, commits: list[str], tmp_path: Path) -> None:
    old, new = commits
    environment = hub.environment(tmp_path)
    there = Prompts(path=HERE, name="plain", revision=old)
    wanted = in_client(environment, texts, there)
    hub.hub.log.clear()
    nowhere = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    began = time.monotonic()
    assert in_client(nowhere, texts, there) == wanted
    assert time.monotonic() - began < 15 and not hub.lines()
    with pytest.raises(InputError, match=r"The Hub did not say which commit of tester/prompts is main.*needs no network"):
        in_client({**nowhere, "HF_HUB_OFFLINE": "1"}, texts, Prompts(path=HERE, name="plain"))
    with pytest.raises(InputError, match=rf"tester/prompts \(plain\), split train, at {new[:7]} cannot be loaded"):
        in_client({**nowhere, "HF_HUB_OFFLINE": "1"}, texts, Prompts(path=HERE, name="plain", revision=new))


def test_another_revision_is_never_taken_for_the_one_asked(hub: HubServer, commits: list[str], tmp_path: Path) -> None:
    """`datasets` alone gives the rows of the cached revision here, and no error."""
    old, new = commits
    environment = hub.environment(tmp_path)
    assert in_client(environment, texts, Prompts(path=HERE, name="plain", revision=old))[0][1] == "old 1"
    hub.hub.faults.append(Fault("GET", status=404, times=-1))
    with pytest.raises(InputError, match=f"split train, at {new[:7]} cannot be loaded"):
        in_client(environment, texts, Prompts(path=HERE, name="plain", revision=new))


WRONG = {
    "repository": (Prompts(path="hf://datasets/tester/none"), "No dataset tester/none on the Hub. Check its name"),
    "revision": (Prompts(path=HERE, revision="v9"), "The dataset tester/prompts has no revision v9"),
    "configuration": (Prompts(path=HERE, name="fancy"), "(fancy), split train.*fancy.*not found.*Check prompts.name"),
    "no configuration": (Prompts(path=HERE), "split train.*Config name is missing"),
    "split": (Prompts(path=HERE, name="plain", split="dev"), "split dev.*Unknown split"),
    "reference": (
        Prompts(path=HERE, name="plain", reference="turth"),
        "no reference answer in a column 'turth'.*prompt, truth",
    ),
    "path": (Prompts(path="hf://datasets/a/b/c.jsonl"), "names no dataset"),
    "key": (Prompts(path=f"{HERE}?subset=plain"), "unknown key 'subset'. Known"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_there_is_said(ask: Ask, hub: HubServer, commits: list[str], what: str) -> None:
    prompts, told = WRONG[what]
    with pytest.raises(InputError, match=told.replace("(", r"\(").replace(")", r"\)")) as error:
        ask(texts, prompts)
    assert error.value.remedy and "\n" not in str(error.value)
