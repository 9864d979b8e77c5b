"""Rounds: what each starts from, which prompts it takes, when they end, and going on after a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import later_stages
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_data import lineage, pipeline
from dpo_data.admission import admit
from dpo_data.config import Gates, Lineage, Recipe, dump, load, parse
from dpo_data.engines.vllm import Vllm
from dpo_data.errors import DpoDataError, GateClosed, InputError, RecipeError, StaleRun
from dpo_data.evaluation.schema import Gain
from dpo_data.report.rounds import report_rounds, rounds_words
from dpo_data.rounds import Round, best, rounds, stopped
from dpo_data.rows import Prompt, Sample
from dpo_data.rundir import RunDir, stage_recipe
from dpo_data.seams import Completed, Output
from dpo_data.status import status
from dpo_data.watch import text
from flows import deploy
from flows.sample_and_train import sample_and_train

pytestmark = pytest.mark.usefixtures("quick_vllm")

Make = Callable[..., Recipe]


def gain(low: float | None, value: float = 0.1, high: float | None = 0.2, prompts: int = 40) -> Gain:
    return Gain(value=value, low=low, high=high, tied=0.0, prompts=prompts, comparisons=4 * prompts)


def came_out(number: int, over_last: Gain | None, closed: Sequence[str] = ()) -> Round:
    counts = {"prompts": 10, "reused": None, "pairs": 8}
    gains = {"over_base": over_last, "over_last": over_last}
    place = {"round": number, "run": f"round-{number}", "sampled_from": "m"}
    return Round(**place, complete=True, **counts, **gains, closed=list(closed))


outcomes = st.tuples(st.sampled_from([-0.3, -0.01, 0.0, 0.01, 0.3, None]), st.booleans(), st.sampled_from([5, 6, 40]))


@given(st.lists(outcomes, min_size=1, max_size=6), st.integers(1, 6))
def test_rounds_go_on_for_as_long_as_each_is_certainly_better(made: list[tuple[float | None, bool, int]], count: int) -> None:
    """Played to their end: only the last one may be unsure, and the best is the one before it."""
    played: list[Round] = []
    for number, (low, is_closed, prompts) in enumerate(made, 1):
        played.append(came_out(number, gain(low, prompts=prompts), ["min_win_rate"] if is_closed else []))
        if stopped(played, count):
            break
    sure = [low is not None and low > 0 and not is_closed and prompts > 5 for low, is_closed, prompts in made[: len(played)]]
    assert all(sure[:-1]) and len(played) <= count
    assert (stopped(played, count) is None) == (sure[-1] and len(played) < count)
    assert best(played) == ((len(played) if sure[-1] else len(played) - 1) or None)


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (came_out(2, gain(-0.01)), "the gain of round 2 .* is +10.0 (−1.0 to +20.0) points of win rate, which includes zero"),
        (came_out(2, gain(-0.3, -0.2, -0.1)), "the gain of round 2 .* is −20.0 (−30.0 to −10.0) .*, which is a loss"),
        (came_out(2, gain(0.0)), "which includes zero"),
        (came_out(2, gain(None, 0.1, None)), "round 2 cannot be told from the model it began with"),
        (came_out(2, gain(0.1, prompts=5)), "round 2 cannot be told from the model it began with"),
        (came_out(2, None), "round 2 cannot be told from the model it began with"),
        (came_out(2, gain(0.1), ["max_kl", "min_win_rate"]), "round 2 did not pass: max_kl, min_win_rate does not hold"),
        (came_out(3, gain(0.1)), "all 3 rounds are done"),
    ],
)
def test_why_no_round_follows(last: Round, says: str) -> None:
    why = stopped([came_out(1, gain(0.1)), last], 3)
    assert why and re.search(re.sub(r"[+()]", r"\\\g<0>", says), why)


TABLES: dict[str, Any] = {
    "name": "t",
    "sample": {"n": 2, "engine": {"type": "vllm", "model": "models/base"}},
    "rank": {"judge": {"type": "rule", "rule": "concise"}},
    "train": {},
}


def asking(path: str, **tables: Any) -> Recipe:
    prompts = {"path": path, "holdout": 0.2, "near_duplicates": 1}
    return parse({"prompts": prompts, **TABLES, "rounds": {"count": 3, "reused": False}, **tables})


def write(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def sampled(run: RunDir, prompts: Sequence[Prompt]) -> str:
    """What a round leaves that has sampled these prompts. Returns its path."""
    stage = run.stage("sample").open({}, {})
    stage.write("00000.parquet", [Sample(one.prompt_id, one.prompt, one.source, [], None) for one in prompts], Sample)
    stage.finish(prompts=len(prompts))
    return str(run.path)


@settings(max_examples=15)
@given(st.integers(4, 60), st.integers(1, 4), st.integers(1, 6), st.none() | st.integers(1, 30), st.randoms())
def test_no_prompt_is_taken_twice_while_others_are_left(
    tmp_path_factory: pytest.TempPathFactory, size: int, count: int, played: int, wanted: int | None, chance: Any
) -> None:
    folder = tmp_path_factory.mktemp("rounds")
    texts = [f"question {at}" for at in range(size)]
    ordered, shuffled = (write(folder / f"{name}.jsonl", texts) for name in ("a", "b"))
    every = {one.prompt_id for one in admit(parse({**asking(ordered).model_dump(mode="json"), "rounds": {}})).sampled()}
    runs: list[str] = []
    last_used: dict[str, int] = {}
    held_out: set[frozenset[str]] = set()
    for number in range(1, played + 1):
        tables = {
            "rounds": {"count": count, "reused": False, "prompts": wanted, "continued": True},
            "lineage": {"base": "models/base", "round": number, "runs": runs},
        }
        chance.shuffle(texts)
        write(folder / "b.jsonl", texts)
        admitted, again = (admit(asking(path, **tables)) for path in (ordered, shuffled))
        taken = list(admitted.sampled())
        ids = {one.prompt_id for one in taken}
        assert ids == {one.prompt_id for one in again.sampled()}, "whatever the file's order"
        assert len(ids) == len(taken) == min(wanted or len(ids), len(every)) > 0
        assert admitted.reused == len(ids & last_used.keys())
        assert not ids & last_used.keys() or every <= ids | last_used.keys(), "used ones only when no other is left"
        kept, again_used = every - ids, ids & last_used.keys()
        if again_used and kept & last_used.keys():
            oldest_kept = min(last_used[one] for one in kept & last_used.keys())
            assert max(last_used[one] for one in again_used) <= oldest_kept, "those that were used the longest ago"
        held_out.add(frozenset(one.prompt_id for one in admitted.held_out()))
        runs = [*runs, sampled(RunDir(folder / f"round-{number}"), taken)]
        last_used |= dict.fromkeys(ids, number)
    assert len(held_out) == 1, "held out are the same in all rounds"
    if wanted is None and played >= count:
        assert last_used.keys() == every, "all rounds together take each"


def test_a_prompt_of_another_round_is_counted_with_its_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [f"question {at}" for at in range(30)])
    beginning = {"base": "models/base", "round": 1, "runs": []}
    first = admit(asking(path, lineage=beginning))
    run = sampled(RunDir(tmp_path / "round-1"), list(first.sampled()))
    second = admit(asking(path, lineage={**beginning, "round": 2, "runs": [run]}))
    why = [row.reason for row in second.dropped() if row.filter == "other_round"]
    assert (why.count(f"sampled by {run}"), why.count("left for a later round")) == (
        first.counts["prompts"],
        second.counts["other_rounds"] - first.counts["prompts"],
    )
    assert second.counts["read"] == 30 == sum(n for name, n in second.counts.items() if name != "read")
    assert (first.reused, second.reused, admit(asking(path)).reused) == (0, 0, None)


def test_a_round_that_is_gone_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [f"question {at}" for at in range(30)])
    made = asking(path, lineage={"base": "models/base", "round": 2, "runs": [str(tmp_path / "gone")]})
    with pytest.raises(InputError, match=r"gone/1-sample is gone, .* Put it back, or set rounds.reused = true"):
        admit(made)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"train": None}, r"\[rounds\] sample from the model that was trained.* Set sample.engine.type = \"vllm\", \[train\]"),
        ({"prompts": {"path": "p"}}, r"Set .* prompts.holdout"),
        ({"sample": {"engine": {"type": "echo"}}, "train": {"model": "m"}}, r"Set sample.engine.type = \"vllm\""),
        ({"rank": {"judge": {"type": "pairwise"}}}, r"'pairwise' has no engine .* Name one model under \[rank.judge.engine\]"),
    ],
)
def test_rounds_that_could_not_go_on_are_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        asking("p", **tables)


def trained(
    run: RunDir, recipe: Recipe, over: float = 0.1, evaluated: bool = True, closed: bool = False, method: str = "lora"
) -> RunDir:
    """What a complete run leaves of what others look at."""
    run.write("recipe.toml", dump(recipe))
    sampled(run, [])
    model = run.stage("train").open({}, {}).path / "model"
    model.mkdir()
    (model / ("adapter_config.json" if method == "lora" else "config.json")).write_text("{}")
    run.stage("train").finish(pairs=8)
    if evaluated:
        won = gain(over, over + 0.05, over + 0.1).model_dump()
        again = recipe.lineage is not None and recipe.lineage.round > 1
        run.stage("evaluate").open({}, {}).finish(gain={"over_base": won, "over_last": won if again else None})
    told = {
        "name": recipe.name,
        "stages": {"evaluate": {"state": "complete" if evaluated else "not begun"}},
        "gates": [{"name": "min_win_rate", "after": "evaluate", "holds": not closed}],
        "evaluate": {"prompts": 9} if evaluated else {},
    }
    run.write("report.json", json.dumps(told))
    return run


def older(run: RunDir, seconds: float) -> None:
    file = run.stage("evaluate").path / "manifest.json"
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime - seconds))


def going_on(**tables: Any) -> Recipe:
    return asking("p", rounds={"continued": True}, **tables)


def test_a_run_goes_on_from_the_newest_that_passed(tmp_path: Path) -> None:
    recipe = going_on()
    assert lineage.first(recipe, RunDir(tmp_path / "none" / "d0")) == Lineage(base="models/base")
    older(good := trained(RunDir(tmp_path / "d9"), recipe), 30)
    older(trained(RunDir(tmp_path / "d1"), recipe), 60)
    older(trained(RunDir(tmp_path / "d2"), recipe, closed=True), 20)
    older(trained(RunDir(tmp_path / "d3"), recipe.model_copy(update={"name": "other"})), 10)
    other = {"n": 2, "engine": {"type": "vllm", "model": "models/other"}}
    trained(RunDir(tmp_path / "d4"), going_on(sample=other))
    trained(RunDir(tmp_path / "d5"), recipe, evaluated=False)
    (tmp_path / "d6").mkdir()
    trained(RunDir(tmp_path / "seed"), going_on(seed=1))
    trained(RunDir(tmp_path / "holdout"), going_on(prompts={"path": "p", "holdout": 0.3, "near_duplicates": 1}))

    [(made, folder)] = rounds(recipe, RunDir(tmp_path / "d7"))
    assert folder.path == tmp_path / "d7"
    assert made.lineage == Lineage(base="models/base", round=2, runs=[str(good.path)])
    assert made.policy().adapter == str(good.path / "4-train" / "model") and made.policy().model == "models/base"

    lineage.keep(made, folder)
    trained(RunDir(tmp_path / "d8"), asking("q", rounds={"continued": True}))
    assert (found := lineage.newest(recipe, folder)) and found.path == tmp_path / "d8", "of other prompts, held out alike"
    assert [again for again, _ in rounds(recipe, folder)] == [made], "what is decided stays"


def test_of_a_run_with_rounds_the_best_is_gone_on_from(tmp_path: Path) -> None:
    recipe = asking("p", rounds={"count": 3, "continued": True})
    top = RunDir(tmp_path / "d1")
    for low in (0.1, 0.1, -0.1):
        made, folder = list(rounds(recipe, top))[-1]
        trained(folder, made, over=low)
    told = report_rounds(recipe, top)
    assert (len(told.rounds), told.best) == (3, 2) and "round 3" in (told.stopped or "")
    made, folder = next(rounds(recipe, RunDir(tmp_path / "d2")))
    assert folder.path == tmp_path / "d2" / "round-1"
    assert made.lineage and (made.lineage.round, made.lineage.runs[-1]) == (3, str(tmp_path / "d1" / "round-2"))


def test_none_of_the_rounds_passed_so_none_is_gone_on_from(tmp_path: Path) -> None:
    recipe = asking("p", rounds={"count": 3, "continued": True})
    top = RunDir(tmp_path / "d1")
    made, folder = next(rounds(recipe, top))
    trained(folder, made, over=-0.1)
    assert report_rounds(recipe, top).best is None
    assert lineage.first(recipe, RunDir(tmp_path / "d2")).runs == []


def test_two_processes_cannot_begin_one_run_from_two_models(tmp_path: Path) -> None:
    recipe, run = going_on(), RunDir(tmp_path / "d2")
    [(early, _)] = rounds(recipe, run)
    trained(RunDir(tmp_path / "d1"), recipe)
    [(late, _)] = rounds(recipe, run)
    assert early.lineage != late.lineage
    lineage.keep(late, run)
    with pytest.raises(StaleRun, match=r"has begun as round 2 of models/base, after .*d1\. Run again"):
        pipeline.run_stage("sample", early, run, lambda *_: None)
    assert load(run.path / "recipe.toml").lineage == late.lineage


def test_only_the_first_round_has_its_sft_step_and_each_its_own_tag(tmp_path: Path) -> None:
    train = {"model": "models/other", "chat_template": "t.jinja", "sft": {}}
    recipe = asking("p", train=train, publish={"repo_id": "me/pairs"}, rounds={"count": 2})
    top = RunDir(tmp_path / "concise")
    first, folder = next(rounds(recipe, top))
    assert first.train and first.train.sft and first.policy().model == "models/other"
    trained(folder, first)
    second, _ = list(rounds(recipe, top))[-1]
    assert second.train and second.train.sft is None and second.policy().model == "models/other"
    assert second.lineage and second.lineage.base == "models/other"
    assert [made.sample.engine.chat_template for made in (first, second) if isinstance(made.sample.engine, Vllm)] == [
        None,
        "t.jinja",
    ], "it samples as it was trained"
    assert [made.publish and made.publish.tag for made in (first, second)] == ["concise-round-1", "concise-round-2"]


def test_all_weights_are_gone_on_from_as_a_model(tmp_path: Path) -> None:
    recipe = asking("p", train={"method": "full"}, rounds={"count": 2})
    made, folder = next(rounds(recipe, RunDir(tmp_path)))
    trained(folder, made, method="full")
    second, _ = list(rounds(recipe, RunDir(tmp_path)))[-1]
    policy = second.policy()
    assert (policy.model, policy.adapter) == (str(tmp_path / "round-1" / "4-train" / "model"), None)


def test_a_stage_of_rounds_belongs_to_a_round(tmp_path: Path) -> None:
    recipe = asking("p")
    with pytest.raises(DpoDataError, match=r"The recipe has \[rounds\]"):
        pipeline.run_stage("sample", recipe, RunDir(tmp_path), lambda *_: None)
    made, folder = pipeline.current(recipe, RunDir(tmp_path))
    assert folder.path == tmp_path / "round-1" and made.lineage == Lineage(base="models/base")


def test_the_page_says_which_round_is_best_and_why_it_ends(tmp_path: Path) -> None:
    recipe = asking("p", name="harm", rounds={"count": 4, "reused": False})
    for low in (0.2, 0.1, -0.1):
        made, folder = list(rounds(recipe, RunDir(tmp_path)))[-1]
        trained(folder, made, over=low)
    told = report_rounds(recipe, RunDir(tmp_path))
    assert json.loads((tmp_path / "rounds.json").read_text()) == told.model_dump(mode="json")
    page = (tmp_path / "rounds.html").read_text()
    assert all(f'href="round-{number}/report.html"' in page for number in (1, 2, 3))
    assert "<svg" in page and "65\u00a0%" in page and "which includes zero" in page and "<script" not in page
    words = rounds_words(RunDir(tmp_path))
    assert re.search(r"^best +round 2$", words, re.M) and re.search(r"^stopped +the gain of round 3 ", words, re.M)
    assert [line for line in text(status(RunDir(tmp_path))).splitlines() if "round-" in line] == [
        str(tmp_path / f"round-{number}") for number in (1, 2, 3)
    ]


class Tying(Vllm):
    """Answers with three lengths; with an adapter, two of them are the same."""

    def build(self) -> Any:
        return TyingEngine(self.adapter or self.model, [5, 5, 7] if self.adapter else [5, 6, 7])


@dataclass
class TyingEngine:
    model: str
    lengths: list[int]

    def complete(self, requests: Any, sampling: Any) -> Iterator[Completed]:
        answers = [Output(" ".join(f"word{at}" for at in range(length)), "stop", length) for length in self.lengths]
        yield from (Completed(request.id, answers) for request in requests)

    def close(self) -> None: ...


@pytest.fixture
def gated(tiny_model: str, prompts: Callable[[int], str]) -> Make:
    """Makes a recipe of two rounds with these tables."""

    def make(**tables: Any) -> Recipe:
        recipe = asking(prompts(60), rounds={"count": 2, "reused": False}, **tables)
        sample = recipe.sample.model_copy(update={"n": 3, "engine": Tying(model=tiny_model)})
        return recipe.model_copy(update={"sample": sample})

    return make


def play_first(recipe: Recipe, top: RunDir, real: Sequence[str] = ("sample", "rank", "pair")) -> None:
    """The first round up to its evaluation, which is made up and says that training certainly helped. Training is made up too,
    where it is not `real`."""
    made, run = next(rounds(recipe, top))
    for name in real:
        pipeline.run_stage(name, made, run, lambda *_: None)
    if "train" not in real:
        later_stages.trained(run)
    later_stages.evaluated(run, quality=5.0)
    for name in {"train", "evaluate"} - set(real):
        stage = pipeline.STAGES[name]
        begun = stage_recipe(stage.settings(made), stage.inputs(made, run))
        run.stage(name).write_text("recipe.json", json.dumps(begun))


def in_flow(recipe: Recipe, run: RunDir) -> None:
    sample_and_train(recipe, str(run.path))


class TestAClosedGate:
    @pytest.mark.usefixtures("on_prefect")
    @pytest.mark.parametrize("play", [pipeline.run, in_flow])
    def test_ends_the_rounds(
        self, play: Callable[[Recipe, RunDir], Any], gated: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_nobody")
        recipe, top = gated(gates={"min_win_rate": 0.999}, publish={"repo_id": "me/pairs"}), RunDir(tmp_path / "run")
        play_first(recipe, top)
        play(recipe, top)
        told = json.loads((top.path / "rounds.json").read_text())
        assert told["stopped"] == "round 1 did not pass: min_win_rate does not hold" and told["best"] is None
        assert len(top.rounds) == 1 and not top.round(1).stage("publish").path.exists()

    @pytest.mark.usefixtures("on_prefect")
    @pytest.mark.parametrize("play", [pipeline.run, in_flow])
    def test_ends_them_before_a_later_round_trains(
        self, play: Callable[[Recipe, RunDir], Any], gated: Make, tmp_path: Path
    ) -> None:
        recipe, top = gated(gates={"max_tie_rate": 0.2}), RunDir(tmp_path / "run")
        play_first(recipe, top)
        play(recipe, top)
        told = json.loads((top.path / "rounds.json").read_text())
        assert told["stopped"] == "round 2 did not pass: max_tie_rate does not hold" and told["best"] == 1
        assert top.round(2).stage("pair").manifest and not top.round(2).stage("train").path.exists()
        assert "not evaluated" in (top.path / "rounds.html").read_text() and "2        is not evaluated" in rounds_words(top)

    def test_is_an_error_where_nothing_is_trained(self, gated: Make, tmp_path: Path) -> None:
        recipe, top = gated(gates={"min_pairs": 10_000}), RunDir(tmp_path / "run")
        with pytest.raises(GateClosed, match="neither published nor trained on: min_pairs = 10000"):
            pipeline.run(recipe, top)
        told = json.loads((top.path / "rounds.json").read_text())
        assert told["stopped"] == "round 1 did not pass: min_pairs does not hold" and told["best"] is None


class Shorter(Vllm):
    """Answers with fewer words the later the run is whose adapter it is given; so each training seems to have helped."""

    def build(self) -> Any:
        return ShorterEngine(self.adapter or self.model)


@dataclass
class ShorterEngine:
    model: str

    def complete(self, requests: Any, sampling: Any) -> Iterator[Completed]:
        run = re.search(r"day-(\d)", self.model)
        least = 7 - 3 * int(run[1]) if run else 7
        for request in requests:
            lengths = [least + (request.seed + at) % 3 for at in range(sampling["n"])]
            yield Completed(
                request.id, [Output(" ".join(f"word{at}" for at in range(length)), "stop", length) for length in lengths]
            )

    def close(self) -> None: ...


@pytest.mark.slow
@pytest.mark.usefixtures("on_prefect")
def test_each_flow_run_goes_on_from_the_newest_that_passed(
    tiny_model: str, prompts: Callable[[int], str], tmp_path: Path
) -> None:
    """Training is real, and what answers is not: so the second day's gain is sure, and only its gate holds it back."""
    day = [str(tmp_path / "runs" / "{name}" / f"day-{number}") for number in range(4)]
    tables = {"name": "short", "train": {"batch_size": 8, "learning_rate": 1e-4}, "rounds": {"continued": True}}
    recipe = asking(prompts(24), **tables, evaluate={"must_parse": "json"})
    engine = Shorter(model=tiny_model)
    recipe = recipe.model_copy(update={"sample": recipe.sample.model_copy(update={"engine": engine})})
    strict = recipe.model_copy(update={"gates": Gates(min_parse_rate=0.5)})
    first, second, third = (RunDir(tmp_path / "runs" / "short" / f"day-{number}") for number in (1, 2, 3))

    sample_and_train(recipe, day[1])
    sample_and_train(strict, day[2])

    adapter = str(first.stage("train").path / "model")
    assert set(second.stage("sample").require()["models"]) == {adapter} != set(first.stage("sample").require()["models"])
    gain = second.stage("evaluate").require()["gain"]
    assert gain["over_last"]["low"] > 0 and gain["over_base"]["low"] > 0
    assert load(second.path / "recipe.toml").lineage == Lineage(base=tiny_model, round=2, runs=[str(first.path)])
    assert lineage.first(recipe, third).runs == [str(first.path)], "the second day's gate did not hold"

    sample_and_train(strict, day[2])
    assert load(second.path / "recipe.toml").lineage == Lineage(base=tiny_model, round=2, runs=[str(first.path)])


def test_the_deployment_goes_on_and_its_schedule_is_off() -> None:
    [one] = [one for one in deploy.deployments()["deployments"] if one["name"] == "rounds"]
    assert [schedule["active"] for schedule in one["schedules"]] == [False]
    assert load(one["parameters"]["recipe"]).rounds.continued and "/{date}" in one["parameters"]["run"]


def teachable(model: str, path: str, **tables: Any) -> Recipe:
    """A recipe by which a tiny random model gives pairs to learn from: most of its answers end by themselves."""
    end = json.loads((Path(model) / "config.json").read_text())["eos_token_id"]  # made likely: a cut answer is not chosen
    sampling = {"n": 4, "max_tokens": 48, "params": {"logit_bias": {str(end): 3.5}}}
    engine = {"type": "vllm", "model": model, "args": {"dtype": "float32"}}
    return parse(
        {
            "name": "brief",
            "prompts": {"path": path, "holdout": 0.4, "near_duplicates": 1},
            "sample": {**sampling, "engine": engine},
            "rank": {"judge": {"type": "rule", "rule": "concise"}},
            "evaluate": {"n": 4},
            **tables,
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_adapter_is_trained_on_in_a_second_round_and_the_next_day(
    tiny_model: str, prompts: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second round, it goes on there; a run on the next day starts from the best round. That the first round
    helped is made up, lest a second hang on what a random model happens to learn; all else is real."""
    pytest.importorskip("vllm")
    monkeypatch.chdir(tmp_path)
    train = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8}
    recipe = teachable(tiny_model, prompts(60), train=train, rounds={"count": 2, "reused": False, "continued": True})
    file, top = Path("brief.toml"), RunDir("brief/d1")
    play_first(recipe, top, real=("sample", "rank", "pair", "train"))
    file.write_text(dump(recipe))
    command = [sys.executable, "-m", "dpo_data.cli", "run", str(file), "--run", str(top.path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (top.round(2).stage("sample").path / "recipe.json").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "there was no second round"
    kept = {path: path.stat().st_mtime_ns for path in top.round(1).path.rglob("*.parquet")}

    pipeline.run(recipe, top)

    assert {path: path.stat().st_mtime_ns for path in top.round(1).path.rglob("*.parquet")} == kept
    first, second = (one.stage("sample").require() for one in top.rounds)
    assert (second["prompts"], second["reused"], first["held_out"]) == (first["other_rounds"], 0, second["held_out"])
    adapter = str(top.round(1).stage("train").path / "model")
    assert set(second["models"]) == {adapter} and set(first["models"]) == {tiny_model}
    evaluated = top.round(2).stage("evaluate")
    assert evaluated.require()["gain"]["over_last"]
    models = {who: next(evaluated.rows(Sample, f"{who}.parquet")).completions[0].model for who in ("base", "last", "trained")}
    assert models == {"base": tiny_model, "last": adapter, "trained": str(top.round(2).stage("train").path / "model")}
    assert _weights(top.round(2)).keys() == _weights(top.round(1)).keys(), "one adapter, trained on"

    told = json.loads((top.path / "rounds.json").read_text())
    [next_day, *_] = rounds(recipe, RunDir("brief/d2"))
    assert next_day[0].policy().adapter == str(top.round(told["best"]).stage("train").path / "model")


def _weights(run: RunDir) -> dict[str, Any]:
    return _tensors(run.stage("train").path / "model")


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(next(folder.glob("*.safetensors"))))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_weights_are_trained_on_as_a_model(
    tiny_model: str, prompts: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round before is made up, but for its model: what goes on from it is real, as far as it differs from an adapter."""
    pytest.importorskip("vllm")
    monkeypatch.chdir(tmp_path)
    train = {"method": "full", "learning_rate": 2e-3, "epochs": 1, "batch_size": 8}
    recipe = teachable(tiny_model, prompts(40), train=train, rounds={"continued": True})
    stage = trained(RunDir("brief/d1"), recipe, method="full").stage("train")
    model = shutil.copytree(tiny_model, stage.path / "model", dirs_exist_ok=True)
    stage.finish(pairs=8)
    [(made, run)] = rounds(recipe, RunDir("brief/d2"))
    for name in ("sample", "rank", "pair", "train"):
        pipeline.run_stage(name, made, run, lambda *_: None)
    assert set(run.stage("sample").require()["models"]) == {str(model)} == {run.stage("train").require()["model"]}
    after, before = _weights(run), _tensors(model)
    assert after.keys() == before.keys() and not all(after[name].equal(before[name]) for name in before)
