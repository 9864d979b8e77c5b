"""The plan: what will be asked, before anything is, against what was asked in the end."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, said, serving

from dpo_data import pipeline
from dpo_data.config import Recipe
from dpo_data.estimate import imagined, judging, people
from dpo_data.judges.cascade import Cascade
from dpo_data.judges.rule import Rule
from dpo_data.judges.terminal import Terminal
from dpo_data.plan import count, plan
from dpo_data.rows import Prompt
from dpo_data.rundir import RunDir


def verdict(text: str, before: int) -> Reply:
    return said(json.dumps({"winner": "A" if len(text) % 2 else "B"}))


@pytest.fixture
def asking(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A recipe whose judge is behind a server that nobody has started, unless a test does."""

    def make(url: str = "http://127.0.0.1:9/v1", prompts: int = 30, **judge: Any) -> Recipe:
        engine = {"type": "server", "base_url": url, "model": "wise"}
        table = {"type": "pairwise", "engine": engine, "reason": 0, **judge}
        prices = {"wise": {"input": 2.0, "output": 10.0}}
        return recipe(prompts, rank={"judge": table}).model_copy(update={"prices": recipe(1, prices=prices).prices})

    return make


def test_a_plan_asks_nobody_and_writes_nothing(asking: Any, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "one")
    told = plan(asking(), run)
    assert not (tmp_path / "runs").exists()
    assert re.search(r"judge calls +360 at most \(pairwise\)", told), told
    assert re.search(r"sample +[\d,]+ tokens in, 960 out at most \(echo\)", told), "30 prompts, 4 answers, 8 tokens"
    assert re.search(r"rank +[\d,]+ tokens in, [\d,]+ out at most, 0\.\d\d by \[prices\] \(wise\)", told)
    assert "tokens/s" not in told, "no speed was ever measured"


def test_what_a_plan_says_of_answers_that_are_there_is_what_is_asked(asking: Any, tmp_path: Path) -> None:
    """Once the answers are sampled, the same questions are counted as are asked: as many, and as long."""
    with serving(verdict) as (script, url):
        made, run = asking(url), RunDir(tmp_path / "one")
        pipeline.run_stage("sample", made, run, lambda *_: None)
        planned = count(made, run)["use"]["rank"]["wise"]
        pipeline.run_stage("rank", made, run, lambda *_: None)
    characters = sum(len(body["messages"][0]["content"]) for body in script.bodies)
    assert planned.calls == len(script.bodies)
    assert planned.read == pytest.approx(characters / 4)
    assert len(json.dumps({"winner": "tie"})) / 4 <= planned.written / planned.calls <= 20


def test_money_is_what_the_prices_say(asking: Any, tmp_path: Path) -> None:
    made = asking()
    use = count(made, RunDir(tmp_path / "one"))["use"]["rank"]["wise"]
    assert use.cost(made.prices["wise"]) == pytest.approx((use.read * 2 + use.written * 10) / 1e6)
    assert f"{use.cost(made.prices['wise']):,.2f} by [prices]" in plan(made, RunDir(tmp_path / "one"))


def test_time_is_known_where_the_same_was_done_before(asking: Any, tmp_path: Path) -> None:
    with serving(verdict) as (_, url):
        made, before = asking(url), RunDir(tmp_path / "runs" / "before")
        for stage in ("sample", "rank"):
            pipeline.run_stage(stage, made, before, lambda *_: None)
        told = plan(made, RunDir(tmp_path / "runs" / "next"))
        manifest = before.stage("rank").manifest
        assert (
            manifest and manifest["tokens_here"] == manifest["calls"]["prompt_tokens"] + manifest["calls"]["completion_tokens"]
        )
        rate = manifest["tokens_here"] / manifest["seconds"]
        assert f"at {rate:,.0f} tokens/s, as measured in before" in told
        assert told.count("tokens/s") == 2, "sample and rank"
        other = plan(asking(url, schedule="swiss"), RunDir(tmp_path / "runs" / "next"))
        assert other.count("tokens/s") == 1, "another judge was never measured"


def test_many_prompts_are_counted_by_a_few(asking: Any, tmp_path: Path) -> None:
    """A tenth of two thousand prompts is looked at, and stands for all of them."""
    use = count(asking(prompts=2000), RunDir(tmp_path / "one"))["use"]
    assert use["rank"]["wise"].calls == pytest.approx(2000 * 12)
    assert use["sample"]["echo"].written == pytest.approx(2000 * 4 * 8)


def test_a_judge_that_asks_nobody_costs_nothing(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The rule is not run either."""
    made = recipe(30, rank={"judge": {"type": "rule", "rule": "os:abort"}})
    assert count(made, RunDir(tmp_path / "one"))["use"]["rank"] == {}
    assert "rank  " not in plan(made, RunDir(tmp_path / "one")).replace("sample, rank", "")


def test_the_judges_of_a_panel_are_counted_each_by_itself(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    engines = [{"type": "server", "base_url": "http://127.0.0.1:9/v1", "model": name} for name in ("one", "two")]
    judges = [{"type": "pairwise", "engine": engine} for engine in engines] + [{"type": "rule", "rule": "os:abort"}]
    made = recipe(30, rank={"judge": {"type": "panel", "judges": judges}})
    prompts = [Prompt(f"{at}", [{"role": "user", "content": "Why?"}], "s") for at in range(3)]
    use = judging(made, imagined(prompts, 4, 8), 30)
    assert {model: of.calls for model, of in use.items()} == {"one": 360, "two": 360}


def test_evaluation_is_counted_where_there_is_training(asking: Any, tmp_path: Path) -> None:
    made = asking(prompts=40).model_copy()
    table = made.model_dump(mode="json", exclude_none=True)
    table["prompts"]["holdout"] = 0.3
    table["train"], table["evaluate"] = {"model": "m"}, {"n": 2}
    made = Recipe.model_validate(table)
    counts = count(made, RunDir(tmp_path / "one"))
    assert counts["use"]["evaluate"]["wise"].calls == counts["held_out"] * 12, "two answers of each model, all with all"
    table["lineage"] = {"base": "b", "round": 2}
    later = count(Recipe.model_validate(table), RunDir(tmp_path / "two"))
    assert later["use"]["evaluate"]["wise"].calls == later["held_out"] * 14, "the last round's too: a knock-out of six"


PEOPLE = {"type": "argilla", "dataset": "d"}
RULE = {"type": "rule", "rule": "concise"}


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        (PEOPLE, "30 prompts to people at most: 30 records (argilla)"),
        ({**PEOPLE, "question": "pairwise"}, "30 prompts to people at most: 180 records (argilla)"),
        ({"type": "terminal"}, "30 prompts to people at most: 180 records (terminal)"),
        ({"type": "cascade", "first": RULE, "then": PEOPLE}, "30 prompts to people at most: 30 records (argilla)"),
        ({"type": "cascade", "first": RULE, "then": PEOPLE, "budget": 7}, "7 prompts to people at most: 7 records (argilla)"),
        (
            {"type": "cascade", "first": RULE, "then": PEOPLE, "share": 0.1, "calibration": 0.2},
            "9 prompts to people at most, about 6 of them for calibration: 9 records (argilla)",
        ),
        (
            {"type": "cascade", "first": RULE, "then": {"type": "terminal"}, "route": "extremes", "ends": 1},
            "30 prompts to people at most: 30 records (terminal)",
        ),
        ({"type": "panel", "judges": [RULE, {"type": "terminal"}]}, "30 prompts to people at most: 180 records (terminal)"),
    ],
)
def test_what_people_are_shown_is_counted(recipe: Callable[..., Recipe], tmp_path: Path, judge: Any, told: str) -> None:
    """Of 30 prompts with four answers each, six twos of which a person would compare. Nobody is asked."""
    found = plan(recipe(30, rank={"judge": judge}), RunDir(tmp_path / "one"))
    assert re.search(rf"^  rank +{re.escape(told)}$", found, re.MULTILINE), found


def test_of_few_prompts_those_with_the_most_answers_are_counted() -> None:
    judge = Cascade(first=Rule(rule="concise"), then=Terminal(), budget=5)
    assert [one.records for one in people(judge, {2: 10, 4: 3})] == [3 * 6 + 2 * 1]


def test_a_judge_that_asks_no_people_has_no_line(asking: Any, tmp_path: Path) -> None:
    assert "people" not in plan(asking(), RunDir(tmp_path / "one"))


def test_what_evaluation_shows_to_people_is_counted(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    table = recipe(40, rank={"judge": PEOPLE}).model_dump(mode="json", exclude_none=True)
    table["prompts"]["holdout"] = 0.3
    table["train"], table["evaluate"] = {"model": "m"}, {"n": 2}
    made = Recipe.model_validate(table)
    counts = count(made, RunDir(tmp_path / "one"))
    assert [one.prompts for one in counts["people"]["evaluate"]] == [counts["held_out"]] and counts["held_out"] > 0
