"""A run on the Hub: what is loaded is what the run holds, by its tag for ever, and nothing is public or lost on the way."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hub import TOKEN, Fault, HubServer
from hub.clients import in_client

from dpo_data import dataset, pipeline, publish, rundir
from dpo_data.config import Recipe, dump
from dpo_data.dataset import gather, is_ours
from dpo_data.errors import InputError, PublishError, RecipeError
from dpo_data.publish import tag_of
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir

ROOT = Path(__file__).parents[1]
CLI = "import dpo_data.hub as hub; hub.PAUSE = 0.01; from dpo_data.cli import script; script()"
Make = Callable[..., Recipe]
Finished = Callable[..., tuple[Recipe, RunDir]]
Published = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def finished(tmp_path: Path, recipe: Make) -> Finished:
    """Makes a run up to its pairs, in a folder of that name; keywords go into [publish], or replace whole tables."""

    def make(name: str = "one", count: int = 40, tables: Mapping[str, Any] | None = None, **publish: Any) -> Any:
        asked = {"repo_id": "tester/pairs", **publish}
        made, run = recipe(count, **{"pair": {"test": 0.2}, "publish": asked, **(tables or {})}), RunDir(tmp_path / name)
        for stage in ("sample", "rank", "pair"):
            pipeline.run_stage(stage, made, run, lambda *_: None)
        return made, run

    return make


@pytest.fixture
def push(tmp_path: Path, hub: HubServer) -> Published:
    """`dpo-data publish`, in a process of its own that pauses shortly between tries; keywords are environment variables."""

    def run(recipe: Recipe, to: RunDir, command: str = "publish", **variables: str) -> subprocess.CompletedProcess[str]:
        done = start(hub, tmp_path, recipe, to, command, **variables)
        out, err = done.communicate(timeout=600)
        assert TOKEN not in out + err, "the token is in no output"
        assert not [path for path in files_of(to.path) if TOKEN.encode() in path.read_bytes()], "and in no file of the run"
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    return run


def start(hub: HubServer, home: Path, recipe: Recipe, to: RunDir, command: str = "publish", **variables: str) -> Any:
    """The command, begun."""
    file = home / f"{to.path.name}.toml"
    file.write_text(dump(recipe))
    env = os.environ | hub.environment(home / "home") | variables
    argv = [sys.executable, "-c", CLI, command, str(file), "--run", str(to.path)]
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture(autouse=True)
def no_repositories(hub: HubServer) -> None:
    shutil.rmtree(hub.root / "datasets", ignore_errors=True)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def ended(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a command that ended well."""
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


Loaded = dict[tuple[str, str], dict[str, tuple[list[dict[str, Any]], str]]]


def load(repo: str, *wanted: tuple[str, str]) -> Loaded:
    """Of each (configuration, revision) each split's rows, and the cache file that they came from."""
    from datasets import load_dataset

    return {
        (config, revision): {
            split: (of.to_list(), of.cache_files[0]["filename"])
            for split, of in load_dataset(repo, config, revision=revision).items()
        }
        for config, revision in wanted
    }


def rows_of(splits: dict[str, tuple[list[dict[str, Any]], str]], split: str, commit: str) -> list[dict[str, Any]]:
    """A split's rows, once it is sure that they are of that commit."""
    rows, file = splits[split]
    assert commit in file
    return rows


def parquet(run: RunDir, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run.stage("pair").path / name).to_pylist()
    return found


def ranked_by_hand(run: RunDir) -> list[dict[str, Any]]:
    """What the configuration `ranked` should hold, put together row by row."""
    judged = {row.prompt_id: row for row in run.stage("rank").rows(Ranking)}
    made = []
    for row in run.stage("sample").rows(Sample):
        of = judged.get(row.prompt_id)
        scores = dict(zip(of.completion_ids, of.scores, strict=True)) if of else {}
        answers = []
        for one in row.completions:
            answer = {name: value for name, value in asdict(one).items() if name not in ("tool_calls", "score", "token_ids")}
            answers.append(answer | {"given_score": one.score, "score": scores.get(one.completion_id)})
        known = {"prompt_id": row.prompt_id, "prompt": row.prompt, "source": row.source, "completions": answers}
        made.append(known | {"judge": of and of.judge, "abstained": of and of.abstained, "error": row.error})
    return made


class TestWhatIsLoaded:
    def test_each_run_loads_by_its_tag_what_it_holds(
        self, finished: Finished, push: Published, hub: HubServer, tmp_path: Path
    ) -> None:
        asked = {"rank": {"judge": {"type": "pairwise"}}}  # its scores come in another order than the answers
        first, second = finished("one", 40, asked, judgments=True), finished("two", 60, {"pair": {"test": 0.0}})
        for recipe, run in (first, second):
            assert f" and at {hub.url}/datasets/tester/pairs/tree/{run.path.name}, " in ended(push(recipe, run))
        stored = hub.repo("tester/pairs")
        one, two = (run.stage("publish").require()["commit"] for _, run in (first, second))
        assert stored.meta["tags"] == {"one": one, "two": two}, "a run directory's name is its tag"
        assert len(stored.history(two)) == 3, "one commit a run, after the Hub's own first one"
        assert stored.meta["private"] is True and first[1].stage("publish").require()["private"] is True, "by default"
        wanted = [("default", "two"), ("default", "one"), ("ranked", "one"), ("judgments", "one"), ("default", "main")]
        loaded = in_client(hub.environment(tmp_path / "fresh"), load, "tester/pairs", *wanted)
        assert [set(loaded[of]) for of in wanted] == [{"train"}, {"train", "test"}, {"train"}, {"train"}, {"train"}]
        for split in ("train", "test"):
            assert rows_of(loaded["default", "one"], split, one) == parquet(first[1], f"{split}.parquet")
        assert rows_of(loaded["ranked", "one"], "train", one) == ranked_by_hand(first[1])
        judgments = [asdict(row) for row in first[1].stage("rank").rows(Ranking)]
        assert rows_of(loaded["judgments", "one"], "train", one) == judgments
        for revision in ("two", "main"):
            assert rows_of(loaded["default", revision], "train", two) == parquet(second[1], "train.parquet")
        assert {path for path in stored.tree(two) if path.endswith(".parquet")} == {
            "default/train-00000.parquet",
            "ranked/train-00000.parquet",
        }, "a split and a configuration that this run has not got are gone"

    def test_what_was_pushed_stands_in_the_manifest(self, finished: Finished, push: Published, hub: HubServer) -> None:
        recipe, run = finished(private=False, revision="nightly/a", tag="v1", judgments=True)
        ended(push(recipe, run, "run"))
        assert json.loads((run.path / "report.json").read_text())["stages"]["publish"]["state"] == "complete"
        manifest, stored = run.stage("publish").require(), hub.repo("tester/pairs")
        assert stored.meta["private"] is False and manifest["private"] is False, "a new one is public where it is asked for"
        assert stored.meta["tags"] == {"v1": manifest["commit"]} and stored.meta["branches"]["nightly/a"] == manifest["commit"]
        assert stored.meta["branches"]["main"] != manifest["commit"]
        assert manifest["url"] == f"{hub.url}/datasets/tester/pairs/tree/v1"
        assert sorted(os.listdir(run.stage("publish").path)) == ["README.md", "manifest.json", "recipe.json"]
        tree = stored.tree(manifest["commit"])
        assert {one["path"]: (one["rows"], one["sha256"]) for one in manifest["pushed"]} == {
            f"{path}-00000.parquet": (rows, tree[f"{path}-00000.parquet"].sha256)
            for path, rows in {
                "default/train": len(parquet(run, "train.parquet")),
                "default/test": len(parquet(run, "test.parquet")),
                "ranked/train": 40,
                "judgments/train": 40,
            }.items()
        }
        assert stored.blob(tree["README.md"].oid).read_text() == (run.stage("publish").path / "README.md").read_text()

    def test_tools_and_their_calls_are_loaded_as_objects(
        self, finished: Finished, push: Published, hub: HubServer, tmp_path: Path
    ) -> None:
        tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
        call = {"type": "function", "function": {"name": "look", "arguments": {"at": [1, {"x": None}]}}}
        file = tmp_path / "tools.jsonl"
        turns = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "a lake"}]
        lines = []
        for at in range(30):
            ask, again = ({"role": "user", "content": f"{words} number {at}"} for words in ("What is there", "Tell me of"))
            lines.append({"messages": [ask, *turns, again], "tools": [tool]})
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        recipe, run = finished(tables={"prompts": {"path": str(file), "near_duplicates": 1}})
        ended(push(recipe, run))
        wanted = [("default", "one"), ("ranked", "one")]
        loaded = in_client(hub.environment(tmp_path / "fresh"), load, "tester/pairs", *wanted)
        rows = rows_of(loaded["default", "one"], "train", run.stage("publish").require()["commit"])
        stored = parquet(run, "train.parquet")
        turned = ("prompt", "chosen", "rejected")
        assert rows == [row | {name: [json.loads(turn) for turn in row[name]] for name in turned} for row in stored]
        assert rows[0]["prompt"][1]["tool_calls"] == [call] and "tool_calls" not in rows[0]["prompt"][0]
        assert json.loads(rows[0]["tools"]) == [tool]
        ranked = loaded["ranked", "one"]["train"][0]
        assert [json.loads(row["prompt"][1]["tool_calls"]) for row in ranked] == [[call]] * 30

    def test_many_shards_become_files_of_a_size_with_all_their_rows(
        self, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, run = finished(judgments=True)
        shards = run.stage("sample").shards()
        monkeypatch.setattr(dataset, "FILE_BYTES", max(shard.stat().st_size for shard in shards) + 1)
        (tmp_path / "out").mkdir()
        found = [one for one in gather(run, tmp_path / "out", judgments=True) if one.config == "ranked"]
        assert [one.path for one in found] == [f"ranked/train-0000{at}.parquet" for at in range(3)] and len(shards) == 5
        rows = [row for one in found for row in pq.read_table(one.file).to_pylist()]
        assert rows == ranked_by_hand(run)
        assert pq.ParquetFile(found[0].file).metadata.row_group(0).column(0).compression == "ZSTD"


class TestNothingIsPublicUnlessAsked:
    def test_a_public_repository_is_refused(self, finished: Finished, push: Published, hub: HubServer) -> None:
        hub.repo("tester/pairs").create(False, "tester", {})
        done = push(*finished())
        assert done.returncode == 4
        assert "tester/pairs is public, and publish.private is true. Make it private" in done.stderr
        assert not hub.lines("_storage") and not hub.lines("/commit/")

    def test_a_private_one_stays_private_and_keeps_what_others_put_there(
        self, finished: Finished, push: Published, hub: HubServer
    ) -> None:
        there = {"notes.txt": b"mine", "ranked/mine.parquet": b"x", "default/train-00007.parquet": b"x"}
        hub.repo("tester/pairs").create(True, "tester", there)
        recipe, run = finished(private=False)
        done = push(recipe, run)
        assert "tester/pairs is private and stays so" in done.stderr and done.returncode == 0
        stored, manifest = hub.repo("tester/pairs"), run.stage("publish").require()
        assert stored.meta["private"] is True and manifest["private"] is True
        tree = stored.tree(manifest["commit"])
        assert {"notes.txt", "ranked/mine.parquet"} <= set(tree)
        assert "default/train-00007.parquet" not in tree, "it would be loaded as a part of ours"


PASSING = {
    "whoami": Fault(match="whoami"),
    "looking at it": Fault(match=r"GET /api/datasets/tester/pairs$", skip=1),
    "making it": Fault(match="repos/create"),
    "commit": Fault(match="/commit/", status=503, headers={"Retry-After": "1"}),
    "commit at the same time": Fault(match="/commit/", status=412),
    "commit with its answer lost": Fault(match="/commit/", kind="drop_response"),
    "tag": Fault(match="POST .*/tag/", status=502),
    "tag with its answer lost": Fault(match="POST .*/tag/", kind="drop_response"),
    "refs": Fault(match="/refs", status=500),
    "reading back": Fault(match="paths-info", status=504),
}
"""What fails once and then works, all in one push."""


class TestTrouble:
    def test_what_fails_for_a_moment_is_asked_for_again(self, finished: Finished, push: Published, hub: HubServer) -> None:
        faults = {name: replace(fault) for name, fault in PASSING.items()}
        hub.hub.faults.extend(faults.values())
        recipe, run = finished()
        ended(push(recipe, run))
        assert not [name for name, fault in faults.items() if fault.times], "all of them were met"
        commits = [entry for entry in hub.hub.log if "/commit/" in entry["line"]]
        assert [entry["status"] for entry in commits] == [503, 412, "drop_response"], "and no commit after the one that is made"
        assert commits[1]["time"] - commits[0]["time"] >= 1, "Retry-After is obeyed"
        stored, commit = hub.repo("tester/pairs"), run.stage("publish").require()["commit"]
        assert stored.meta["tags"] == {"one": commit} and len(stored.history(commit)) == 2
        assert "trying again" in (run.logs / "run.log").read_text()

    def test_it_gives_up_in_the_end(self, finished: Finished, push: Published, hub: HubServer) -> None:
        hub.hub.faults.append(Fault(match="/commit/", status=503, times=-1))
        recipe, run = finished()
        done = push(recipe, run)
        assert done.returncode == 4 and "The Hub answered 503 when asked to commit to tester/pairs: " in done.stderr
        assert done.stderr.splitlines()[-1].endswith("Run again later: what is stored already is not sent again.")
        assert len(hub.lines("/commit/")) == 5 and not run.stage("publish").manifest

    def test_killed_in_the_middle_of_an_upload_it_goes_on(
        self, finished: Finished, push: Published, hub: HubServer, tmp_path: Path
    ) -> None:
        hub.hub.faults.append(Fault(match="^PUT ", kind="slow", delay=60, times=1))
        recipe, run = finished()
        begun = start(hub, tmp_path, recipe, run)
        until(lambda: len(hub.lines("PUT")) == 3)
        time.sleep(0.1)
        begun.send_signal(signal.SIGKILL)
        begun.communicate()
        assert not run.stage("publish").manifest and not hub.lines("/commit/")
        ended(push(recipe, run))
        assert sorted(os.listdir(run.stage("publish").path)) == ["README.md", "manifest.json", "recipe.json"]
        assert len(hub.lines("PUT")) == 4, "only the file that was on its way"

    def test_what_is_committed_is_not_committed_again(self, finished: Finished, push: Published, hub: HubServer) -> None:
        recipe, run = finished()
        ended(push(recipe, run))
        commit, stored = run.stage("publish").require()["commit"], hub.repo("tester/pairs")
        del stored.meta["tags"]["one"]
        stored.save()
        (run.stage("publish").path / "manifest.json").unlink()
        ended(push(recipe, run))  # as if the first had been killed after its commit
        assert run.stage("publish").require()["commit"] == commit == hub.repo("tester/pairs").meta["tags"]["one"]
        asked = len(hub.lines())
        pipeline.run_stage("publish", recipe, run, lambda *_: None)
        assert len(hub.lines()) == asked, "a complete stage asks the Hub nothing"
        again = RunDir(shutil.copytree(run.path, run.path.parent / "elsewhere" / "one"))
        shutil.rmtree(again.stage("publish").path)
        ended(push(recipe, again))
        assert again.stage("publish").require()["commit"] == commit and len(hub.lines("/commit/")) == 1


def until(true: Callable[[], bool]) -> None:
    """Waits, at most half a minute."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


REFUSED: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "wrong token": ({"HF_TOKEN": "hf_another"}, {}, "The Hub does not know this token. Log in anew with `hf auth login`"),
    "no rights": ({}, {"repo_id": "other/pairs"}, "This token may not make other/pairs. Use a token that may write there"),
    "nobody there": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {}, "127.0.0.1:9 cannot be reached (ConnectError). Check the net"),
    "no such name": ({}, {"repo_id": "tester/a--b"}, "The Hub takes no such name: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_refuses_is_said_in_one_line_and_nothing_is_sent(
    finished: Finished, push: Published, hub: HubServer, name: str
) -> None:
    variables, publish, words = REFUSED[name]
    done = push(*finished(**publish), **variables)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 4 and last.startswith("dpo-data: error: ") and words in last
    assert "Traceback" not in done.stderr
    assert not hub.lines("/commit/") and not hub.lines("PUT")


UNASKED: dict[str, tuple[str, dict[str, str], str]] = {
    "no token": ("", {}, "No token for the Hugging Face Hub. Log in with `hf auth login`, or set HF_TOKEN; then run again."),
    "offline": (TOKEN, {}, "HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it to publish."),
    "tag and branch": (TOKEN, {"tag": "main"}, "'main' is the branch and cannot be the tag too. Name a publish.tag."),
}


@pytest.mark.parametrize("name", UNASKED)
def test_what_is_wrong_here_is_said_before_anybody_is_asked(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    token, publish, words = UNASKED[name]
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nobody is logged in"))
    recipe, run = finished(**publish)
    with pytest.raises(PublishError) as error:
        pipeline.run_stage("publish", recipe, run, lambda *_: None)
    assert str(error.value) == words and error.value.exit_code == 4
    assert os.listdir(run.stage("publish").path) == ["recipe.json"]


def test_without_a_token_a_run_ends_before_it_begins(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "nobody is logged in"))
    with pytest.raises(PublishError, match="No token for the Hugging Face Hub"):
        pipeline.run(recipe(publish={"repo_id": "tester/pairs"}), RunDir(tmp_path / "new"))
    assert os.listdir(tmp_path / "new") == [".lock"]


def test_a_tag_or_a_card_that_is_somebody_elses(finished: Finished, push: Published, hub: HubServer) -> None:
    stored = hub.repo("tester/pairs")
    stored.create(True, "tester", {})
    stored.meta["tags"]["one"] = stored.resolve("main")
    stored.save()
    done = push(*finished())
    assert done.returncode == 4 and "The tag 'one' of tester/pairs stands on another commit. What is tagged" in done.stderr
    hub.repo("tester/cards").create(True, "tester", {"README.md": b"---\nlicense: mit\n---\n# By hand\n"})
    done = push(*finished("two", repo_id="tester/cards"))
    assert done.returncode == 4 and "tester/cards holds a dataset card that dpo-data did not write" in done.stderr
    assert not hub.lines("/commit/")


def rewritten(run: RunDir, change: Callable[[Any], Any]) -> None:
    """train.parquet with other content, and a manifest that knows its size, rows and hash."""
    from dpo_data.provenance import file_hash

    stage = run.stage("pair")
    path, manifest = stage.path / "train.parquet", stage.require()
    pq.write_table(change(pq.read_table(path)), path)
    (facts,) = (file for file in manifest["files"] if file["name"] == "train.parquet")
    facts.update(bytes=path.stat().st_size, sha256=file_hash(path))
    (stage.path / "manifest.json").write_text(json.dumps(manifest))


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a column more": (lambda table: table.append_column("x", [[1] * len(table)]), "its schema is not the one that is declared"),
    "a column less": (lambda table: table.drop_columns("margin"), "its schema is not the one that is declared"),
    "a row less": (lambda table: table.slice(1), r"it should hold \d+ rows, and holds \d+"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_not_what_it_says_is_not_published(finished: Finished, tmp_path: Path, name: str) -> None:
    change, words = WRONG[name]
    _, run = finished()
    rewritten(run, change)
    with pytest.raises(PublishError, match=rf"train\.parquet is not published: {words}"):
        gather(run, tmp_path, judgments=False)


@pytest.mark.parametrize("time_too", [False, True])
def test_a_pair_file_of_the_same_size_but_other_bytes_is_not_published(
    finished: Finished, tmp_path: Path, time_too: bool
) -> None:
    """Nor where its time of change is the same as well, and its hash was known to be right."""
    _, run = finished()
    run.stage("pair").require()
    path = run.stage("pair").path / "train.parquet"
    times, data = path.stat(), bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    if time_too:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    kind, words = (
        (PublishError, "it is not the file that the stage wrote")
        if time_too
        else (InputError, r"train\.parquet is gone or changed since")
    )
    with pytest.raises(kind, match=words):
        gather(run, tmp_path, judgments=False)


def test_a_score_of_an_answer_that_was_never_sampled_is_not_published(finished: Finished, tmp_path: Path) -> None:
    _, run = finished()
    stage = run.stage("rank")
    first, second = stage.shards()[:2]
    swapped = {first: second.read_bytes(), second: first.read_bytes()}
    manifest = json.loads((stage.path / "manifest.json").read_text())
    told = {file["name"]: file for file in manifest["files"]}
    for path, data in swapped.items():
        path.write_bytes(data)
        told[path.name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (stage.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PublishError, match="it ranks answers that 1-sample does not hold"):
        gather(run, tmp_path, judgments=False)


class TestFork:
    def test_a_stage_that_was_not_run_is_no_gap(self, tmp_path: Path) -> None:
        old, run = RunDir(tmp_path / "old"), ["sample", "rank", "pair", "train"]
        for name in run:
            old.stage(name).open({}, {}).finish()
        assert rundir.fork(old, RunDir(tmp_path / "new"), lambda name, recipe: True) == run
        assert rundir.fork(old, RunDir(tmp_path / "newer"), lambda name, recipe: name != "rank") == ["sample", "pair", "train"]

    def test_what_is_published_stays_published_where_it_holds(self, finished: Finished, tmp_path: Path) -> None:
        made, old = finished()
        old.stage("publish").open(publish.settings(made), publish.inputs(made, old)).finish(commit="c")
        other = made.model_copy(update={"publish": made.publish.model_copy(update={"license": "mit"})})
        upto_pair = ["sample", "rank", "pair"]
        for at, (recipe, kept) in enumerate(((made, [*upto_pair, "publish"]), (other, upto_pair))):
            assert pipeline.fork(old, RunDir(tmp_path / f"new-{at}"), recipe) == kept


@pytest.mark.parametrize(
    ("key", "value"),
    [("license", "mit\n---\n"), ("language", ["e n"]), ("repo_id", "pairs"), ("tag", "a b"), ("revision", "/main")],
)
def test_what_would_break_a_card_or_a_name_is_no_recipe(recipe: Make, key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"'publish\.{key}"):
        recipe(publish={"repo_id": "tester/pairs", key: value})


@pytest.mark.parametrize(("name", "tag"), [("demo", "demo"), ("2026-01-02T03", "2026-01-02T03"), ("a b/.x~^:?", "x")])
def test_a_run_names_its_tag(tmp_path: Path, name: str, tag: str) -> None:
    assert tag_of(RunDir(tmp_path / name)) == tag


def test_what_a_push_may_delete() -> None:
    ours = ["default/train-00000.parquet", "default/test-00012.parquet", "ranked/train-00001.parquet"]
    others = ["README.md", "default/train.parquet", "data/train-00000.parquet", "ranked/deep/train-00000.parquet", "default"]
    assert [is_ours(path) for path in ours + others] == [True] * 3 + [False] * 5
