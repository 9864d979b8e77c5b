"""Two runs side by side: what differs is told with its interval, what cannot be held against each other says so, and no run is
changed."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import later_stages
import pytest
from test_report import HARM

from dpo_data import cli, pipeline
from dpo_data.compare import Comparison, compare, html, table
from dpo_data.config import Recipe, dump, load, parse
from dpo_data.errors import InputError
from dpo_data.judges.pairwise import Pairwise
from dpo_data.report.settings import differences, flat
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir

Make = Callable[..., Recipe]
Two = Callable[..., tuple[RunDir, RunDir]]

CONCISE = {"rank": {"judge": {"type": "rule", "rule": "concise"}}}


@pytest.fixture(scope="module")
def paired(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe and its run up to pairs, with 90 of 180 prompts held out. Not to be changed."""
    folder = tmp_path_factory.mktemp("paired")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Name {at} rivers, {HARM}"}) + "\n" for at in range(180)))
    recipe = parse(
        {
            "name": "test",
            "prompts": {"path": str(prompts), "holdout": 0.5, "near_duplicates": 1},
            "sample": {"n": 3, "max_tokens": 8, "shard_size": 32, "engine": {"type": "echo"}},
            "train": {"model": tiny_model, "beta": 0.1},
            **CONCISE,
        }
    )
    run = RunDir(folder / "run")
    for stage in ("sample", "rank", "pair"):
        pipeline.run_stage(stage, recipe, run, lambda *_: None)
    return recipe, run.path


def made(
    paired: tuple[Recipe, Path],
    folder: Path,
    better: float = 0.0,
    seeds: tuple[int, int] = (0, 0),
    names: tuple[str, str] = ("old", "new"),
) -> tuple[RunDir, RunDir]:
    """Two runs with the same pairs, trained and evaluated: the second with another beta, `better` by so much, and with other
    luck where `seeds` differ."""
    recipe, path = paired
    assert recipe.train
    runs = []
    for at, name in enumerate(names):
        run = RunDir(shutil.copytree(path, folder / name))
        settings = recipe.model_copy(update={"train": recipe.train.model_copy(update={"beta": (0.1, 0.3)[at]})})
        run.write("recipe.toml", dump(settings))
        later_stages.trained(run, fall=1.0 + at)
        later_stages.evaluated(run, quality=at * better, seed=seeds[at])
        runs.append(run)
    return runs[0], runs[1]


@pytest.fixture
def two(paired: tuple[Recipe, Path], tmp_path: Path) -> Two:
    """Makes such runs in the test's own folder."""
    return partial(made, paired, tmp_path)


def cells(found: Comparison) -> dict[str, tuple[str, str]]:
    return {row.name: (row.one, row.other) for row in found.rows}


@pytest.fixture(scope="module")
def better(paired: tuple[Recipe, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Comparison]:
    """A run and a clearly better one, and the same turned."""
    old, new = made(paired, tmp_path_factory.mktemp("better"), better=2.0, seeds=(0, 1))
    return compare(old, new), compare(new, old)


def true_difference(found: Comparison) -> float:
    """Worked out anew: by how much the other's win rate against the base is above the one's, over the same prompts."""
    gains = [side.report.evaluate and side.report.evaluate.gain.over_base for side in (found.one, found.other)]
    assert gains[0] and gains[1] and gains[0].prompts == gains[1].prompts
    return gains[1].value - gains[0].value


class TestWhatIsTold:
    def test_settings_and_figures_of_both(self, better: tuple[Comparison, Comparison]) -> None:
        found, _ = better
        assert found.settings == [("train.beta", 0.1, 0.3)]
        told = cells(found)
        assert told["pairs to train on"][0] == told["pairs to train on"][1] != "–"
        assert told["last loss"] == ("0.5", "0.5") and told["judge"][0].startswith("rule:concise")
        won = told["comparisons won"]
        assert won[0] != won[1] and all("points (" in side for side in won)
        shown = table(found).splitlines()
        assert shown[0].split() == ["old", "new"] and shown[1].split() == ["train.beta", "0.1", "0.3"]
        assert shown[-1].startswith("verdict ") and shown[-1].endswith(found.verdict)

    def test_the_better_one_is_named_with_its_interval(self, better: tuple[Comparison, Comparison]) -> None:
        verdict = better[0].verdict
        assert (
            verdict.startswith("new is better: of the comparisons with the base, new wins +") and better[1].verdict == verdict
        )
        value, low, high = map(float, re.findall(r"[+−]([\d.]+)", verdict))
        assert 0 < low < value < high and value == pytest.approx(100 * true_difference(better[0]), abs=0.05)

    def test_the_same_prompts_answers_stand_side_by_side(self, better: tuple[Comparison, Comparison]) -> None:
        found, turned = better
        assert found.prompts == found.one.run.stage("sample").require()["held_out"] > 80 and len(found.answers) == 8
        assert [(one.other, one.score_other, one.one, one.score_one) for one in turned.answers] == [
            (one.one, one.score_one, one.other, one.score_other) for one in found.answers
        ]

    def test_chance_is_not_taken_for_better(self, two: Two) -> None:
        found = compare(*two(names=("x/run", "y/run")))
        assert found.one.name.endswith("x/run") and found.other.name.endswith("y/run"), "of one name, they go by their paths"
        assert found.verdict.startswith("neither is shown to be better: ") and "+0.0 points (+0.0 to +0.0)" in found.verdict
        assert compare(*two(seeds=(3, 4))).verdict.startswith("neither is shown to be better")


class TestWhatIsUnknown:
    def test_without_training(self, paired: tuple[Recipe, Path], two: Two) -> None:
        _, whole = two()
        found = compare(RunDir(paired[1]), whole)
        assert found.verdict == "unknown: run is not evaluated" and found.answers == []
        assert cells(found)["last loss"] == ("–", "0.5")
        assert "Training" in html(found) and "What both answer" not in html(found)

    def test_with_other_judges_or_bases(self, two: Two) -> None:
        old, new = two(better=2.0)
        file = new.stage("rank").path / "recipe.json"
        begun = json.loads(file.read_text())
        begun["settings"]["rank"]["judge"]["rule"] = "detailed"
        file.write_text(json.dumps(begun))
        assert compare(old, new).verdict.startswith("unknown: their judges are not the same")
        shutil.rmtree(new.stage("train").path)
        later_stages.trained(new, revision="sha256:2")
        shutil.copyfile(old.stage("rank").path / "recipe.json", file)
        assert compare(old, new).verdict.startswith("unknown: their bases are not the same")

    def test_with_a_judge_that_is_whichever_model_sampled(self, two: Two) -> None:
        old, new = two(better=2.0)
        for run in (old, new):
            recipe = load(run.path / "recipe.toml")
            rank = recipe.rank.model_copy(update={"judge": Pairwise()})
            run.write("recipe.toml", dump(recipe.model_copy(update={"rank": rank})))
        assert compare(old, new).verdict.startswith("new is better")
        file = new.stage("sample").path / "recipe.json"
        begun = json.loads(file.read_text())
        begun["inputs"]["model"] = "sha256:2"
        file.write_text(json.dumps(begun))
        assert compare(old, new).verdict.startswith("unknown: their judges are not the same")

    def test_a_prompt_without_a_comparison_does_not_count(self, two: Two) -> None:
        """As where only the model of the round before has an answer that could be scored."""
        old, new = two(better=2.0)
        stage = new.stage("evaluate")
        first, *others = stage.rows(Ranking, "rank.parquet")
        transcript = json.dumps([{"kind": "error", "completion_id": id} for id in first.completion_ids])
        ids, scores = [*first.completion_ids, "last"], [None for _ in first.completion_ids]
        unscored = replace(first, completion_ids=ids, scores=[*scores, 1.0], transcript=transcript)
        stage.write("rank.parquet", [unscored, *others], Ranking)
        assert compare(old, new).verdict.endswith(f", on {len(others):,} prompts")

    def test_a_figure_that_is_not_known_is_not_zero(self, two: Two) -> None:
        old, new = two()
        file = new.stage("train").path / "manifest.json"
        trained = json.loads(file.read_text())
        file.write_text(json.dumps({**trained, "held_out": {**trained["held_out"], "rewards/accuracies": None}}))
        assert cells(compare(old, new))["accuracy on test pairs"] == ("90 %", "–")


def test_of_a_run_with_rounds_the_best_is_compared(two: Two, tmp_path: Path) -> None:
    first, second = two(better=2.0, names=("old", "a/round-1"))
    shutil.copytree(second.path, tmp_path / "a" / "round-2")
    whole = RunDir(tmp_path / "a")
    whole.write("rounds.json", json.dumps({"best": 2}))
    found = compare(first, whole)
    assert (found.other.name, found.other.run.path) == ("a/round-2", whole.path / "round-2")
    assert found.verdict.startswith("a/round-2 is better")
    whole.write("rounds.json", json.dumps({"best": None}))
    with pytest.raises(InputError, match=r"a has rounds, and none of them is its best\. Name one, as .*a/round-1"):
        compare(first, whole)


def hashes(*runs: RunDir) -> dict[str, str]:
    files = [path for run in runs for path in run.path.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_command_writes_one_page_and_changes_no_run(
    two: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = two(better=2.0)
    before = hashes(old, new)
    assert cli.main(["compare", str(old.path), str(new.path), "--out", "both.html"]) == 0
    assert "new is better" in capsys.readouterr().out and hashes(old, new) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.html", "new", "old"]
    assert cli.main(["compare", str(old.path), "nowhere"]) == 2
    assert "No run with a finished stage at nowhere. Name a run directory" in capsys.readouterr().err


def test_the_page_in_a_browser(two: Two, tmp_path: Path) -> None:
    """It loads nothing, runs nothing of what the runs hold, and fits a telephone."""
    from playwright.sync_api import sync_playwright

    old, new = two(better=1.0, seeds=(0, 1))
    path = new.stage("evaluate").path / "trained.parquet"
    rows = [
        replace(row, completions=[replace(one, text=HARM) for one in row.completions])
        for row in new.stage("evaluate").rows(Sample, path.name)
    ]
    new.stage("evaluate").write(path.name, rows, Sample)
    page_file = tmp_path / "both.html"
    page_file.write_text(html(compare(old, new)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file.as_uri())
        assert asked == [page_file.as_uri()] and said == []
        assert page.locator("script").count() == 0 and page.locator(".answer").first.is_visible()
        assert HARM in page.locator(".answer.good .text").first.inner_text()
        assert page.locator("#training figure svg").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        browser.close()


def test_settings_are_flat_and_compared_by_key() -> None:
    one: dict[str, Any] = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": 1}
    assert flat(one) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}], "f": 1}
    other: dict[str, Any] = {"a": {"b": 2, "c": {}}, "d": [1, {"e": 2}], "g": None, "h": 0}
    assert differences(one, other) == [("a.b", 1, 2), ("f", 1, None), ("h", None, 0)]
    assert differences(one, one) == []
