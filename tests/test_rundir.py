"""A run directory: whole files or none, finished shards for ever, and no mixing of recipes."""

import hashlib
import json
import logging
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dpo_data import pipeline, sums
from dpo_data.config import Recipe
from dpo_data.errors import EngineError, InputError, InUse, NotReady, OutOfDisk, StaleRun, TooManyFailures
from dpo_data.files import partial_of, write_atomically
from dpo_data.rows import DroppedPrompt, PreferencePair, Prompt, Ranking, Sample
from dpo_data.rundir import FOLDERS, RunDir, Stage
from dpo_data.tables import SCHEMAS, to_table

Make = Callable[..., Recipe]

HARMS: list[Callable[[Path], Any]] = [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(path.read_bytes()[::-1]),
]
"""What somebody does to a file by hand: deletes it, cuts it, changes it at the same length."""


def ranking(id: str, said: str = "[]") -> Ranking:
    return Ranking(id, "j", ["a", "b"], [1.0, None], None, said)


def prompt(id: str) -> Prompt:
    return Prompt(id, [{"role": "user", "content": id}], "s")


def run_all(recipe: Recipe, run: RunDir) -> None:
    """Every stage, without the report."""
    for name in pipeline.stages_of(recipe):
        pipeline.run_stage(name, recipe, run, lambda *_: None)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the logs and what tells the time."""
    skipped = {"manifest.json", "progress.json", "run.log", "report.json", "report.html"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skipped
    }


def stop_after(shards: int, recipe: Recipe, run: RunDir) -> None:
    """Sample so many shards, and be stopped."""

    def stop(stage: str, done: int, total: int) -> None:
        if done >= shards * recipe.sample.shard_size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run_stage("sample", recipe, run, stop)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*.parquet")}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return RunDir(tmp_path / "run").stage("rank").open({"a": 1}, {})


class TestWriting:
    def test_a_file_appears_whole_and_replaces_the_old_one(self, tmp_path: Path) -> None:
        for text in (b"one", b"two"):
            assert write_atomically(tmp_path / "f", text).read_bytes() == text
        assert os.listdir(tmp_path) == ["f"]

    def test_until_it_is_whole_the_old_file_stands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_atomically(tmp_path / "f", b"old")

        def killed(*_: Any) -> None:
            assert (tmp_path / "f").read_bytes() == b"old"
            assert partial_of(tmp_path / "f").read_bytes() == b"new", "all of it is written before the name is given"
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "f", b"new")
        assert (tmp_path / "f").read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["f"], "who is stopped takes its half with it"

    def test_what_a_killed_run_left_is_swept(self, stage: Stage) -> None:
        for name in (".00000.parquet.tmp", ".train.parquet.tmp", ".manifest.json.tmp"):
            (stage.path / name).write_bytes(b"half")
        partial_of(stage.path).mkdir()
        stage.open({"a": 1}, {})
        assert os.listdir(stage.path) == ["recipe.json"]
        assert os.listdir(stage.path.parent) == ["2-rank"]

    def test_what_a_killed_run_left_at_the_top_goes_before_another_works_there(self, tmp_path: Path) -> None:
        """Of a stage that is complete nothing is noted any more, so nothing would replace it."""
        run = RunDir(tmp_path)
        with run.held():
            left = partial_of(run.write("progress.json", "{}"))
            left.write_bytes(b"")
            with run.held():
                assert left.exists(), "whoever holds it may be writing"
        with run.held():
            assert sorted(os.listdir(tmp_path)) == [".lock", "progress.json"]

    def test_shards_whose_recipe_is_gone_are_refused(self, stage: Stage) -> None:
        stage.write("00000.parquet", [ranking("p")], Ranking)
        (stage.path / "recipe.json").unlink()
        with pytest.raises(StaleRun, match=r"2-rank has lost its recipe\.json\..*or delete"):
            stage.open({"a": 1}, {})

    def test_files_of_one_block_appear_together(self, stage: Stage) -> None:
        with stage.writers({"one.parquet": SCHEMAS[Ranking], "two.parquet": SCHEMAS[Ranking]}) as append:
            append["one.parquet"](to_table([ranking("p")], Ranking))
            assert not list(stage.path.glob("*.parquet"))
        assert [row.prompt_id for row in stage.rows(Ranking, "one.parquet")] == ["p"]
        assert list(stage.rows(Ranking, "two.parquet")) == []

    def test_a_block_that_fails_leaves_nothing(self, stage: Stage) -> None:
        with pytest.raises(ZeroDivisionError), stage.writers({"one.parquet": SCHEMAS[Ranking]}) as append:
            append["one.parquet"](to_table([ranking("p")], Ranking))
            raise ZeroDivisionError
        assert os.listdir(stage.path) == ["recipe.json"]

    def test_small_appends_make_no_small_row_groups(self, stage: Stage) -> None:
        with stage.writers({"one.parquet": SCHEMAS[Ranking]}) as append:
            for at in range(5100):
                append["one.parquet"](to_table([ranking(f"p{at}")], Ranking))
        assert [row.prompt_id for row in stage.rows(Ranking, "one.parquet")] == [f"p{at}" for at in range(5100)]
        assert pq.ParquetFile(stage.path / "one.parquet").num_row_groups == 2


class TestFill:
    def fill(
        self, stage: Stage, ids: Iterable[list[str]], work: Callable[[list[Prompt]], Iterable[Any]], done: Any = None
    ) -> int:
        shards = ((at, [prompt(id) for id in of_shard]) for at, of_shard in enumerate(ids))
        heard = done if done is not None else []
        return stage.fill(shards, lambda rows: iter(work(list(rows))), Ranking, heard.append)

    def test_results_in_any_order_give_shards_in_prompt_order(self, stage: Stage) -> None:
        ids = [[f"p{shard}{at}" for at in range(7)] for shard in range(5)]

        def shuffled(rows: list[Prompt]) -> list[Ranking]:
            return [ranking(row.prompt_id) for row in random.Random(3).sample(rows, len(rows))]

        done: list[int] = []
        assert self.fill(stage, ids, shuffled, done) == 0
        assert [[row.prompt_id for row in stage.rows(Ranking, path.name)] for path in stage.shards()] == ids
        assert done == list(range(1, 36))

    def test_a_shard_is_written_as_soon_as_it_is_whole(self, stage: Stage) -> None:
        def work(rows: Iterator[Prompt]) -> Iterator[Ranking]:
            for row in rows:
                if row.prompt_id == "c":
                    assert [path.name for path in stage.shards()] == ["00000.parquet"]
                yield ranking(row.prompt_id)

        shards = [(0, [prompt("a"), prompt("b")]), (1, [prompt("c")])]
        assert stage.fill(shards, work, Ranking) == 0
        assert len(stage.shards()) == 2

    def test_what_did_not_come_back_is_counted_and_its_shard_waits(self, stage: Stage) -> None:
        ids = [["a", "b"], ["c", "d"], ["e"]]
        assert self.fill(stage, ids, lambda rows: [ranking(row.prompt_id) for row in rows if row.prompt_id != "c"]) == 1
        assert [path.name for path in stage.shards()] == ["00000.parquet", "00002.parquet"]

        def only_the_rest(rows: list[Prompt]) -> list[Ranking]:
            assert [row.prompt_id for row in rows] == ["c", "d"]
            return [ranking(row.prompt_id, "again") for row in rows]

        before = stamps(stage.path)
        done: list[int] = []
        assert self.fill(stage, ids, only_the_rest, done) == 0
        assert {path: stamp for path, stamp in stamps(stage.path).items() if path in before} == before
        assert [row.transcript for row in stage.rows(Ranking)] == ["[]", "[]", "again", "again", "[]"]
        assert done == [2, 3, 4, 5], "two shards are there, and two rows come"

    def test_shards_beyond_five_digits_are_in_order(self, stage: Stage) -> None:
        for index in (100_000, 2, 99_999):
            stage.write(stage.shard(index).name, [ranking(str(index))], Ranking)
        stage.write("dropped.parquet", [], DroppedPrompt)
        assert [row.prompt_id for row in stage.rows(Ranking)] == ["2", "99999", "100000"]


class TestResume:
    def test_a_finished_run_is_not_touched(self, tmp_path: Path, recipe: Make) -> None:
        run = RunDir(tmp_path / "run")
        run_all(recipe(), run)
        before, manifests = stamps(run.path), [run.stage(name).manifest for name in FOLDERS]
        run_all(recipe(), run)
        assert stamps(run.path) == before
        assert [run.stage(name).manifest for name in FOLDERS] == manifests

    def test_lost_shards_alone_are_made_again(self, tmp_path: Path, recipe: Make) -> None:
        run = RunDir(tmp_path / "run")
        run_all(recipe(), run)
        whole, before = files(run.path), stamps(run.path)
        for folder, gone in (("1-sample", ("00001.parquet", "manifest.json")), ("3-pair", ("manifest.json", "test.parquet"))):
            for name in gone:
                (run.path / folder / name).unlink()
        run_all(recipe(), run)
        assert files(run.path) == whole
        changed = {Path(path).name for path, stamp in stamps(run.path).items() if before[path] != stamp}
        assert changed == {"00001.parquet", "dropped.parquet", "held_out.parquet", "train.parquet", "test.parquet"}

    def test_two_runs_of_one_recipe_are_equal_byte_for_byte(self, tmp_path: Path, recipe: Make) -> None:
        one, two = (RunDir(tmp_path / name) for name in ("one", "two"))
        run_all(recipe(), one)
        run_all(recipe(), two)
        assert files(one.path) == files(two.path)


class TestStale:
    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"seed": 1}, "1-sample was made with another recipe: seed was 0, is 1"),
            ({"sample": {"n": 3, "max_tokens": 8, "shard_size": 8, "engine": {"type": "echo"}}}, "sample.n was 4, is 3"),
            (
                {"sample": {"n": 4, "max_tokens": 8, "shard_size": 8, "engine": {"type": "echo"}, "params": {"min_p": 0.1}}},
                r"sample.params.min_p was null, is 0.1",
            ),
            (
                {"rank": {"judge": {"type": "rule", "rule": "detailed"}}},
                '2-rank was .*: rank.judge.rule was "concise", is "detailed"',
            ),
            ({"pair": {"test": 0.2}}, "3-pair was .*: pair.test was 0.05, is 0.2"),
        ],
    )
    def test_a_changed_recipe_is_named_with_both_remedies(self, tmp_path: Path, recipe: Make, changed: Any, told: str) -> None:
        run = RunDir(tmp_path / "run")
        run_all(recipe(), run)
        before = files(run.path)
        with pytest.raises(StaleRun, match=told) as error:
            run_all(recipe(**changed), run)
        assert f"`dpo-data fork {run.path} RECIPE --run NEW`" in error.value.remedy
        assert "or delete" in error.value.remedy
        assert files(run.path) == before

    def test_changed_prompts_are_another_input(self, tmp_path: Path, recipe: Make) -> None:
        run, made = RunDir(tmp_path / "run"), recipe()
        run_all(made, run)
        with open(made.prompts.path, "a") as file:
            file.write('{"prompt": "one more"}\n')
        with pytest.raises(StaleRun, match=r'1-sample was .*: inputs.prompts was "'):
            run_all(made, run)

    def test_what_made_nothing_is_not_stale(self, tmp_path: Path, recipe: Make) -> None:
        """A bad line is mended in the prompts, a wrong model in the recipe: neither asks for a new run."""
        run, made = RunDir(tmp_path / "run"), recipe()
        good = Path(made.prompts.path).read_text()
        Path(made.prompts.path).write_text(good + "{")
        with pytest.raises(InputError, match="line 41"):
            run_all(made, run)
        Path(made.prompts.path).write_text(good)
        server = {"type": "server", "base_url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}
        with pytest.raises(EngineError, match=r"No answer from http://127.0.0.1:9/v1"):
            run_all(recipe(sample={"n": 4, "engine": server}), run)
        run_all(made, run)

    def test_a_ceiling_may_be_raised_as_the_error_says(self, tmp_path: Path, recipe: Make) -> None:
        def judged(ceiling: float) -> Recipe:
            return recipe(rank={"max_abstained": ceiling, "judge": {"type": "rule", "rule": f"{__name__}:scores_q1"}})

        run = RunDir(tmp_path / "run")
        with pytest.raises(
            TooManyFailures, match=r"The judge abstained on 29 of 40 prompts; the first reason: 0 of 4.*max_abstained"
        ):
            run_all(judged(0.5), run)
        before = stamps(run.path)
        run_all(judged(0.8), run)
        assert before.items() <= stamps(run.path).items()
        sampled = {"n": 4, "max_tokens": 8, "shard_size": 8, "max_failed": 0.5, "engine": {"type": "echo"}}
        pipeline.run_stage("sample", recipe(sample=sampled), run, lambda *_: None)

    def test_a_model_is_looked_for_before_anything_is_written(self, tmp_path: Path, recipe: Make) -> None:
        run = RunDir(tmp_path / "run")
        for model in ("./none", str(tmp_path / "none"), "no/such/model", "nobody/nothing"):
            with pytest.raises(EngineError, match=f"No model at '{model}'"):
                run_all(recipe(sample={"n": 4, "engine": {"type": "vllm", "model": model}}), run)
        assert not run.stage("sample").path.exists()


def scores_q1(messages: Any, text: str) -> float | None:
    """Can score the answers to question 1 and to 10–19 alone."""
    return float(len(text)) if messages[-1]["content"].startswith("Question 1") else None


class TestManifest:
    def test_it_says_what_was_made_and_with_what(self, tmp_path: Path, recipe: Make) -> None:
        run = RunDir(tmp_path / "run")
        run_all(recipe(), run)
        for name, facts in {
            "sample": {
                *("shape", "read", "duplicates", "near_duplicates", "contaminated", "held_out", "prompts", "failed"),
                *("model", "models", "model_revision", "sampling", "tokens", "tokens_here", "tools"),
                *("policy", "reused", "chat_template_kwargs"),
            },
            "rank": {"prompts", "abstained", "judge", "calls", "tokens_here"},
            "pair": {
                *("prompts", "paired", "candidates", "train", "test"),
                *("dropped_prompts", "dropped_pairs", "tools", "chat_template_kwargs", "length_control"),
            },
        }.items():
            stage = run.stage(name)
            manifest = stage.require()
            assert manifest.keys() == facts | {"seconds", "files", "digest", "versions", "git_commit"}
            assert [file["name"] for file in manifest["files"]] == sorted(path.name for path in stage.path.glob("*.parquet"))
            for file in manifest["files"]:
                content = (stage.path / file["name"]).read_bytes()
                assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
                assert file["rows"] == pq.read_metadata(stage.path / file["name"]).num_rows
            assert {"python", "pyarrow", "dpo-data"} <= manifest["versions"].keys()
            written = {path.name: path.stat().st_mtime_ns for path in stage.path.iterdir()}
            assert written["manifest.json"] == max(written.values()), "it is written last"
        assert run.stage("rank").recipe["inputs"]["sample"] == run.stage("sample").manifest["digest"]  # type: ignore[index]

    def test_a_stage_waits_for_the_manifest_of_the_one_before(self, tmp_path: Path, recipe: Make) -> None:
        run = RunDir(tmp_path / "run")
        with pytest.raises(NotReady, match=r"1-sample is not complete.* `dpo-data sample RECIPE` first"):
            pipeline.run_stage("rank", recipe(), run, lambda *_: None)

    @pytest.mark.parametrize("harm", HARMS)
    def test_a_shard_harmed_since_is_met_by_the_next_stage(
        self, tmp_path: Path, recipe: Make, harm: Callable[[Path], Any]
    ) -> None:
        run = RunDir(tmp_path / "run")
        pipeline.run_stage("sample", recipe(), run, lambda *_: None)
        harm(run.stage("sample").shard(2))
        with pytest.raises(InputError, match=r"00002\.parquet is gone or changed since .*1-sample was complete") as error:
            pipeline.run_stage("rank", recipe(), run, lambda *_: None)
        assert error.value.remedy == "Put it back; or run `dpo-data sample RECIPE` to redo it alone."

    @pytest.mark.parametrize("harm", HARMS)
    @pytest.mark.parametrize("name", ["sample", "rank"])
    def test_a_shard_harmed_since_is_redone_alone_and_said(
        self, tmp_path: Path, recipe: Make, harm: Callable[[Path], Any], name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = RunDir(tmp_path / "run")
        run_all(recipe(), run)
        before, old = files(run.path), stamps(run.path)
        harm(run.stage(name).shard(2))
        run_all(recipe(), run)
        assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
            f"{run.stage(name).shard(2)} is gone or changed since it was written: it alone is made again"
        ]
        assert files(run.path) == before, "an echo says the same, so what stands on it holds still"
        anew = {path for path, stamp in stamps(run.path).items() if stamp != old[path]}
        aside = {str(run.stage("sample").path / f"{one}.parquet") for one in ("dropped", "held_out")}
        assert anew - aside == {str(run.stage(name).shard(2))}

    @pytest.mark.parametrize("harm", HARMS[1:])
    def test_a_shard_harmed_in_a_stage_that_is_not_complete_is_redone(
        self, tmp_path: Path, recipe: Make, harm: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        run = RunDir(tmp_path / "run")
        run_all(recipe(), RunDir(tmp_path / "whole"))
        stop_after(3, recipe(), run)
        assert len(sums.read(run.stage("sample").path)) == 3
        harm(run.stage("sample").shard(1))
        run_all(recipe(), run)
        assert [one.message for one in caplog.records if one.levelno == logging.WARNING] == [
            f"{run.stage('sample').shard(1)} is gone or changed since it was written: it alone is made again"
        ]
        assert files(run.path) == files(tmp_path / "whole")

    def test_a_hash_is_on_the_disk_before_its_file(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.replace", killed)
            stage.write("00000.parquet", [ranking("p")], Ranking)
        text = (stage.path / sums.SUMS).read_text()
        assert re.fullmatch(r"[0-9a-f]{64}  00000\.parquet\n", text)
        assert sums.read(stage.path) == {}, "a hash without its file says nothing"
        (stage.path / sums.SUMS).write_text(text + text[:40])
        stage.write("00000.parquet", [ranking("p")], Ranking)
        assert sums.read(stage.path) == {"00000.parquet": text[:64]}, "a line is found behind one that was torn"
        assert subprocess.run(["sha256sum", "--check", sums.SUMS], cwd=stage.path, capture_output=True).returncode == 0

    def test_a_complete_stage_keeps_its_hashes_in_the_manifest_alone(self, tmp_path: Path, recipe: Make) -> None:
        run = RunDir(tmp_path / "run")
        run_all(recipe(), run)
        assert not list(run.path.rglob(sums.SUMS))

    def test_a_shard_changed_while_its_stage_runs_ends_it(self, tmp_path: Path, recipe: Make) -> None:
        run = RunDir(tmp_path / "run")
        shard = run.stage("sample").shard(0)

        def harm(stage: str, done: int, total: int) -> None:
            if done == total:
                shard.write_bytes(shard.read_bytes()[:-9])

        with pytest.raises(InputError, match=r"00000\.parquet (was changed since it was written|cannot be read)"):
            pipeline.run_stage("sample", recipe(), run, harm)
        run_all(recipe(), run)


class TestFork:
    def test_another_judge_keeps_the_samples(self, tmp_path: Path, recipe: Make) -> None:
        old, new = RunDir(tmp_path / "old"), RunDir(tmp_path / "new")
        run_all(recipe(), old)
        other = recipe(rank={"judge": {"type": "rule", "rule": "detailed"}})
        assert pipeline.fork(old, new, other) == ["sample"]
        assert sorted(os.listdir(new.path)) == [".lock", "1-sample", "recipe.toml"]
        for path in old.stage("sample").shards():
            assert (new.stage("sample").path / path.name).samefile(path), "one file on disk, linked twice"
        before = files(old.path)
        run_all(other, new)
        assert files(old.path) == before
        assert files(old.path / "1-sample") == files(new.path / "1-sample")

    @pytest.mark.parametrize(
        ("changed", "kept"),
        [
            ({}, ["sample", "rank", "pair"]),
            ({"name": "other"}, ["sample", "rank", "pair"]),
            ({"pair": {"test": 0.3}}, ["sample", "rank"]),
            ({"seed": 3}, []),
        ],
    )
    def test_it_keeps_exactly_what_holds(self, tmp_path: Path, recipe: Make, changed: Any, kept: list[str]) -> None:
        old, new = RunDir(tmp_path / "old"), RunDir(tmp_path / "new")
        run_all(recipe(), old)
        assert pipeline.fork(old, new, recipe(**changed)) == kept
        run_all(recipe(**changed), new)

    def test_what_is_not_complete_is_not_kept(self, tmp_path: Path, recipe: Make) -> None:
        old, new = RunDir(tmp_path / "old"), RunDir(tmp_path / "new")
        run_all(recipe(), old)
        (old.stage("rank").path / "manifest.json").unlink()
        assert pipeline.fork(old, new, recipe()) == ["sample"]

    def test_without_hard_links_it_copies(self, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_links(*_: Any) -> None:
            raise OSError("no hard links here")

        old, new = RunDir(tmp_path / "old"), RunDir(tmp_path / "new")
        run_all(recipe(), old)
        monkeypatch.setattr("os.link", no_links)
        assert pipeline.fork(old, new, recipe()) == ["sample", "rank", "pair"]
        assert not new.stage("sample").shard(0).samefile(old.stage("sample").shard(0))
        assert files(new.path / "3-pair") == files(old.path / "3-pair")

    def test_one_that_was_killed_is_repeated(self, tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        old, new = RunDir(tmp_path / "old"), RunDir(tmp_path / "new")
        run_all(recipe(), old)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunDir, "write", killed)
            pipeline.fork(old, new, recipe())
        assert pipeline.fork(old, new, recipe()) == ["sample", "rank", "pair"]
        (new.path / "recipe.toml").unlink()
        (new.stage("rank").path / "manifest.json").unlink()
        write_atomically(new.stage("rank").path / "recipe.json", b"{}")
        with pytest.raises(InputError, match=r"2-rank is begun already\. .*--run"):
            pipeline.fork(old, new, recipe())

    def test_nobody_else_works_in_the_new_place(self, tmp_path: Path, recipe: Make) -> None:
        old, new = RunDir(tmp_path / "old"), RunDir(tmp_path / "new")
        run_all(recipe(), old)
        with ThreadPoolExecutor(1) as pool, new.held(), pytest.raises(InUse):
            pool.submit(pipeline.fork, old, new, recipe()).result()

    def test_it_needs_an_old_run_and_a_new_place(self, tmp_path: Path, recipe: Make) -> None:
        old = RunDir(tmp_path / "old")
        with pytest.raises(InputError, match="No run at"):
            pipeline.fork(old, RunDir(tmp_path / "new"), recipe())
        run_all(recipe(), old)
        with pytest.raises(InputError, match=r"old is begun already\. .*--run"):
            pipeline.fork(old, old, recipe())


class TestFullDisk:
    """/dev/full refuses every byte as a full disk does; a tiny tmpfs is one."""

    def test_a_shard_that_does_not_fit_leaves_nothing(self, stage: Stage) -> None:
        partial_of(stage.shard(0)).symlink_to("/dev/full")
        with pytest.raises(OutOfDisk, match=r"The disk of .*2-rank is full\. Free some space and run again"):
            stage.write(stage.shard(0).name, [ranking("p")], Ranking)
        assert sorted(os.listdir(stage.path)) == ["SHA256SUMS", "recipe.json"]
        stage.write(stage.shard(0).name, [ranking("p")], Ranking)
        assert len(list(stage.rows(Ranking))) == 1

    def test_pairs_that_do_not_fit_leave_nothing(self, stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
        partial_of(stage.path / "two.parquet").symlink_to("/dev/full")
        with (
            pytest.raises(OutOfDisk),
            stage.writers({"one.parquet": SCHEMAS[Ranking], "two.parquet": SCHEMAS[Ranking]}) as append,
        ):
            for at in range(6000):
                append["two.parquet"](to_table([ranking(f"p{at}", str(random.random()))], Ranking))
        assert os.listdir(stage.path) == ["recipe.json"]
        assert capfd.readouterr().err == ""

    def test_another_error_is_no_full_disk(self, stage: Stage) -> None:
        partial_of(stage.shard(0)).mkdir()
        with pytest.raises(IsADirectoryError):
            stage.write(stage.shard(0).name, [], Ranking)

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
        folder = tmp_path / "small"
        folder.mkdir()

        def mount(size: str) -> Path:
            again = ["remount,"] if folder.is_mount() else [""]
            asked = ["mount", "-t", "tmpfs", "-o", f"{again[0]}size={size}", "tmpfs", str(folder)]
            made = subprocess.run(asked, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(
                    f"no small disk can be mounted here, so a disk filling up in mid-run is not tried: {made.stderr.strip()}"
                )
            return folder

        yield mount
        if folder.is_mount():
            subprocess.run(["umount", str(folder)], check=True)

    def test_a_run_on_a_full_disk_goes_on_when_there_is_space(
        self, tmp_path: Path, recipe: Make, small_disk: Callable[[str], Path]
    ) -> None:
        made = recipe(400)
        whole = RunDir(tmp_path / "whole")
        run_all(made, whole)
        run = RunDir(small_disk("96k") / "run")
        with pytest.raises(OutOfDisk, match="is full"):
            run_all(made, run)
        assert not list(run.path.rglob("*.tmp"))
        kept = stamps(run.path)
        assert 0 < len(kept) < 50
        small_disk("64m")
        run_all(made, run)
        assert kept.items() <= stamps(run.path).items()
        assert files(run.path) == files(whole.path)
        assert list(run.stage("pair").rows(PreferencePair, "train.parquet"))


def test_rows_and_columns_are_read_in_order(tmp_path: Path, recipe: Make) -> None:
    run = RunDir(tmp_path / "run")
    pipeline.run_stage("sample", recipe(), run, lambda *_: None)
    stage = run.stage("sample")
    ids = [row.prompt_id for row in stage.rows(Sample)]
    assert len(ids) == 40 and list(stage.column("prompt_id")) == ids
    assert json.loads((stage.path / "recipe.json").read_text()) == stage.recipe
