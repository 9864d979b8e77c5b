"""Several models answer each prompt, one after the other; what one has answered is never asked again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_rundir import files, stamps
from test_server import Reply, Scripted, said, serve  # noqa: F401

from dpo_data import pipeline
from dpo_data.config import Recipe, dump, parse
from dpo_data.errors import EngineError, RecipeError, TooManyFailures
from dpo_data.evaluation.sides import engine
from dpo_data.models import engine_revision
from dpo_data.plan import count
from dpo_data.report import facts
from dpo_data.rows import Sample
from dpo_data.rundir import RunDir

PROMPTS = 24


class Models:
    """Two chat servers, each of another model; `order` is who was asked, in the order of the questions."""

    def __init__(self, serve: Any, prompts: Callable[[int], str]):  # noqa: F811
        self.order: list[str] = []
        self.fault: Callable[[str, str], Reply | None] = lambda model, text: None
        self.prompts = prompts(PROMPTS)
        self.scripts: dict[str, Scripted] = {}
        self.urls: dict[str, str] = {}
        for model in ("small", "large"):
            self.scripts[model], client = serve(lambda text, before, model=model: self.reply(model, text))
            self.urls[model] = client().base_url

    def reply(self, model: str, text: str) -> Reply:
        self.order.append(model)
        return self.fault(model, text) or said(*(f"{model} says {side} of {text}" for side in ("this", "that thing")))

    def asked(self) -> Counter[str]:
        return Counter(self.order)

    def engine(self, model: str) -> dict[str, Any]:
        return {
            "type": "server",
            "base_url": self.urls[model],
            "model": model,
            "retries": 0,
            "concurrency": 4,
            "logprobs": False,
        }

    def recipe(self, **sample: Any) -> Recipe:
        mix = {"type": "mix", "engines": [self.engine("small"), self.engine("large")]}
        return parse(
            {
                "name": "t",
                "prompts": {"path": self.prompts},
                "sample": {"n": 4, "max_tokens": 16, "shard_size": 4, "engine": mix, **sample},
                "rank": {"judge": {"type": "rule", "rule": "concise"}},
            }
        )


@pytest.fixture
def models(serve: Any, prompts: Callable[[int], str]) -> Models:  # noqa: F811
    return Models(serve, prompts)


def sample(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    return pipeline.run_stage("sample", recipe, run, lambda *_: None)


def test_each_model_answers_its_share_of_every_prompt(models: Models, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    manifest = sample(models.recipe(), run)
    rows = list(run.stage("sample").rows(Sample))
    assert len(rows) == PROMPTS == manifest["prompts"]
    for row in rows:
        assert [(one.index, one.model) for one in row.completions] == [(0, "small"), (1, "small"), (2, "large"), (3, "large")]
        assert all(one.text.startswith(f"{one.model} says") and row.prompt[0]["content"] in one.text for one in row.completions)
    ids = [one.completion_id for row in rows for one in row.completions]
    assert len(set(ids)) == 4 * PROMPTS
    assert (manifest["model"], manifest["models"]) == ("small, large", {"small": 2 * PROMPTS, "large": 2 * PROMPTS})
    assert manifest["sampling"]["n"] == 4 and manifest["model_revision"] == [None, None]
    assert {body["n"] for script in models.scripts.values() for body in script.bodies} == {2}
    names = [path.name for path in sorted(run.stage("sample").path.iterdir())]
    assert names == [
        *(f"{at:05d}.parquet" for at in range(6)),
        *("dropped.parquet", "held_out.parquet", "manifest.json", "recipe.json"),
    ]


def test_one_model_is_done_before_the_next_is_asked(models: Models, tmp_path: Path) -> None:
    sample(models.recipe(), RunDir(tmp_path / "run"))
    assert models.order == ["small"] * PROMPTS + ["large"] * PROMPTS


def test_each_model_has_seeds_of_its_own(models: Models, tmp_path: Path) -> None:
    sample(models.recipe(), RunDir(tmp_path / "run"))
    seeds = [{body["seed"] for body in script.bodies} for script in models.scripts.values()]
    assert len(seeds[0] | seeds[1]) == 2 * PROMPTS


def test_progress_goes_up_to_all_answers(models: Models, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pipeline.run_stage(
        "sample", models.recipe(), RunDir(tmp_path / "run"), lambda stage, done, total: seen.append((done, total))
    )
    assert seen == sorted(seen) and seen[-1] == (2 * PROMPTS, 2 * PROMPTS) == (seen[-1][0], seen[0][1])


def test_a_whole_run_of_a_mix_adds_up(models: Models, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    pipeline.run(models.recipe(), run)
    assert facts.funnel(run)[0].count == PROMPTS
    assert count(models.recipe(), RunDir(tmp_path / "none"))["completions"] == 4 * PROMPTS


def test_what_one_model_answered_is_not_asked_again(models: Models, tmp_path: Path) -> None:
    sample(models.recipe(), whole := RunDir(tmp_path / "whole"))
    models.order.clear()
    run = RunDir(tmp_path / "run")
    models.fault = lambda model, text: (401, {}, {"error": {"message": "no"}}) if model == "large" else None
    with pytest.raises(EngineError, match="refuses the key"):
        sample(models.recipe(), run)
    assert models.asked()["small"] == PROMPTS
    kept = stamps(run.path)
    assert len(kept) == 6, "the first model's answers are on the disk"
    models.fault = lambda model, text: None
    models.order.clear()
    sample(models.recipe(), run)
    assert models.asked()["small"] == 0 and models.asked()["large"] >= PROMPTS
    assert files(run.path) == files(whole.path)


def test_what_all_have_answered_is_not_asked_again_for_want_of_a_manifest(models: Models, tmp_path: Path) -> None:
    sample(models.recipe(), whole := RunDir(tmp_path / "whole"))
    run = RunDir(tmp_path / "run")
    (run.stage("sample").path / "held_out.parquet").mkdir(parents=True)  # so that nothing can be written there
    with pytest.raises(IsADirectoryError):
        sample(models.recipe(), run)
    (run.stage("sample").path / "held_out.parquet").rmdir()
    models.order.clear()
    sample(models.recipe(), run)
    assert not models.order
    assert files(run.path) == files(whole.path)
    assert not list(run.stage("sample").path.glob("part-*"))


def test_a_model_that_is_not_there_leaves_nothing_to_mend(models: Models, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    models.fault = lambda model, text: (404, {}, {"error": {"message": "no such model"}})
    with pytest.raises(EngineError, match="does not know this model"):
        sample(models.recipe(), run)
    models.fault = lambda model, text: None
    assert sample(models.recipe(max_tokens=17), run)["prompts"] == PROMPTS, "the recipe may be mended in place"


def test_killed_at_any_moment_it_goes_on(models: Models, tmp_path: Path) -> None:
    sample(models.recipe(), whole := RunDir(tmp_path / "whole"))
    models.order.clear()
    reached, go = threading.Event(), threading.Event()

    def stop(model: str, text: str) -> None:
        if model == "large" and models.asked()["large"] > 10:
            reached.set()
            go.wait(60)

    models.fault = stop  # type: ignore[assignment]
    (tmp_path / "recipe.toml").write_text(dump(models.recipe()))
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-m", "dpo_data.cli", "sample", str(tmp_path / "recipe.toml"), "--run", str(run.path)]
    child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert reached.wait(60), child.poll()
        time.sleep(0.1)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        go.set()
    assert not run.stage("sample").manifest and not run.stage("sample").shards()
    kept = stamps(run.path)
    assert models.asked()["small"] == PROMPTS and 6 <= len(kept) < 12
    models.fault = lambda model, text: None
    models.order.clear()
    sample(models.recipe(), run)
    assert models.asked()["small"] == 0 and 0 < models.asked()["large"] < PROMPTS
    assert files(run.path) == files(whole.path)


def test_a_lost_shard_alone_is_asked_again(models: Models, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    sample(models.recipe(), run)
    before = files(run.path)
    for name in ("00002.parquet", "manifest.json"):
        (run.stage("sample").path / name).unlink()
    models.order.clear()
    sample(models.recipe(), run)
    assert models.asked() == {"small": 4, "large": 4}
    assert files(run.path) == before


def test_a_prompt_that_one_model_cannot_answer_has_failed(models: Models, tmp_path: Path) -> None:
    def too_long(model: str, text: str) -> Reply | None:
        return (400, {}, {"error": {"message": "too long"}}) if model == "large" and text.startswith("Question 7:") else None

    models.fault = too_long
    run = RunDir(tmp_path / "run")
    assert sample(models.recipe(), run)["failed"] == 1
    failed = [row for row in run.stage("sample").rows(Sample) if row.error]
    assert [row.source for row in failed] == [f"prompts-{PROMPTS}.jsonl:8"] and failed[0].completions == []
    assert "too long" in str(failed[0].error)


def test_a_model_that_fails_too_often_ends_the_run_before_the_next_is_loaded(models: Models, tmp_path: Path) -> None:
    models.fault = lambda model, text: (400, {}, {"error": {"message": "too long"}})
    run = RunDir(tmp_path / "run")
    with pytest.raises(TooManyFailures, match=rf"24 of 24.*too long.*delete {run.path}/1-sample/part-0"):
        sample(models.recipe(), run)
    assert models.asked() == {"small": PROMPTS}


def mix(*engines: dict[str, Any], **tables: Any) -> dict[str, Any]:
    sample = {"n": 4, "engine": {"type": "mix", "engines": list(engines)}, **tables.pop("sample", {})}
    return {
        "name": "t",
        "prompts": {"path": "p"},
        "sample": sample,
        "rank": {"judge": {"type": "rule", "rule": "concise"}},
        **tables,
    }


ECHO, SLOW, VLLM = (
    {"type": "echo"},
    {"type": "echo", "delay": 0.1},
    {"type": "vllm", "model": "m", "args": {"dtype": "float32"}},
)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (mix(ECHO), "'sample.engine.engines' in the recipe is .*at least 2 items"),
        (mix(ECHO, SLOW, VLLM), "'sample.n' is 4, which the 3 engines of the mix cannot share evenly. Make it a multiple of 3"),
        (mix(ECHO, ECHO), "The mix names an engine of type 'echo' twice. Name each once, and raise sample.n"),
        (
            mix(ECHO, {"type": "mix", "engines": [ECHO, SLOW]}),
            "'sample.engine.engines.1.type' in the recipe is 'mix'. Use one of",
        ),
        (mix(ECHO, {"type": "given"}), "'sample.engine.engines.1.type' in the recipe is 'given'. Use one of"),
        (
            mix(ECHO, {"type": "echo", "dely": 1}),
            "Unknown key 'sample.engine.engines.1.dely' in the recipe. Did you mean 'delay'",
        ),
        (mix(ECHO, {"type": "vllm"}), "the recipe lacks 'sample.engine.engines.1.model'"),
        (
            mix(ECHO, SLOW, rank={"judge": {"type": "pairwise"}}),
            r"'pairwise' has no engine of its own, and the 'mix' that samples cannot judge. Name one model under",
        ),
        (
            mix(ECHO, SLOW, rank={"judge": {"type": "pairwise", "engine": {"type": "mix", "engines": [ECHO, SLOW]}}}),
            "'rank.judge.engine.type' in the recipe is 'mix'. Use one of 'vllm', 'server', 'echo'",
        ),
        (mix(VLLM, SLOW, train={}), "An engine of type 'mix' does not say which model to train. Set train.model"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(table: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as error:
        parse(table)
    assert "\n" not in str(error.value)


def test_a_mix_survives_its_dump_and_trains_the_model_that_is_named() -> None:
    import tomllib

    recipe = parse(mix(VLLM, SLOW, train={"model": "m"}))
    assert parse(tomllib.loads(dump(recipe))) == recipe
    assert recipe.base_model() == ("m", None)
    assert engine(recipe, recipe.policy()).args == {"dtype": "float32"}, "as it was loaded to sample"
    other = parse(mix(VLLM, SLOW, train={"model": "other"}))
    assert engine(other, other.policy()).args == {}


def test_the_weights_of_all_members_are_known(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(f'"{folder.name}"')
    engines = [{"type": "vllm", "model": str(folder)} for folder in folders]
    settings = parse(mix(*engines, ECHO, sample={"n": 3})).sample.engine
    one, two, none = engine_revision(settings)  # type: ignore[misc]
    assert none is None and one != two and one.startswith("sha256:") and two.startswith("sha256:")
