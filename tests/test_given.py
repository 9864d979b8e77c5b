"""Answers and scores that came with their prompts, as if they had been sampled and judged."""

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from desk import no_engines

from dpo_data import pipeline
from dpo_data.config import Recipe, load, parse
from dpo_data.engines.given import Given
from dpo_data.errors import InputError, RecipeError, TooManyFailures
from dpo_data.judges.given import GivenJudge
from dpo_data.plan import count, plan
from dpo_data.report import facts
from dpo_data.rows import Completion, DroppedPair, DroppedPrompt, PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir

REAL = Path(__file__).parents[2] / "shared" / "data" / "dpo_en_demo.json"
GIVEN = {"type": "given"}
RULE = {"type": "rule", "rule": "concise"}


def curating(
    path: Path, *records: Any, judge: dict[str, Any] = GIVEN, sample: dict[str, Any] | None = None, **prompts: Any
) -> Recipe:
    """A recipe that takes these records' own answers."""
    file = path / "p.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return parse(
        {
            "name": "t",
            "prompts": {"path": str(file), **prompts},
            "sample": {"engine": GIVEN, **(sample or {})},
            "rank": {"judge": judge, "max_abstained": 1.0},
            "pair": {"test": 0, "filters": {}},
        }
    )


def sampled(recipe: Recipe, run: RunDir) -> dict[str, Sample]:
    pipeline.run_stage("sample", recipe, run, lambda *_: None)
    return {row.prompt[-1]["content"]: row for row in run.stage("sample").rows(Sample)}


def flat(prompt: str, answer: str, score: float | None = None, model: str | None = None) -> dict[str, Any]:
    told = {"prompt": prompt, "completion": answer, "score": score, "model": model}
    return {name: value for name, value in told.items() if value is not None}


def test_all_answers_of_a_prompt_are_gathered_from_wherever_they_stand(tmp_path: Path) -> None:
    recipe = curating(
        tmp_path,
        flat("name a river", "the Rhine", 2, "small"),
        flat("name a hill", "Ben Nevis", 1, "small"),
        flat("name a lake", "Garda", 1, "small"),
        flat("name a river", "the Rhine", 3, "large"),
        flat("name a hill", "Snowdon", 2, "large"),
        flat("name a river", "a river", 0, "small"),
    )
    rows = sampled(recipe, RunDir(tmp_path / "run"))
    river = rows["name a river"]
    assert [(one.text, one.model, one.score) for one in river.completions] == [
        ("the Rhine", "small", 2),
        ("the Rhine", "large", 3),
        ("a river", "small", 0),
    ]
    assert [one.index for one in river.completions] == [0, 1, 2] and river.source == "p.jsonl:1"
    assert {text: len(row.completions) for text, row in rows.items()} == {"name a river": 3, "name a hill": 2, "name a lake": 1}
    ids = [one.completion_id for row in rows.values() for one in row.completions]
    assert len(set(ids)) == 6, "the same text of two models is two completions"
    manifest = RunDir(tmp_path / "run").stage("sample").require()
    assert (manifest["read"], manifest["prompts"], manifest["duplicates"], manifest["failed"]) == (3, 3, 0, 0)
    assert manifest["models"] == {"small": 4, "large": 2} and manifest["sampling"] == {}


def test_an_answers_id_depends_on_nothing_but_its_place_among_the_prompts_own(tmp_path: Path) -> None:
    records = [flat("one", "a"), flat("two", "b"), flat("one", "c"), flat("three", "d")]
    ids = []
    for name, given in (("here", records), ("there", [records[3], records[0], records[2], records[1]])):
        (tmp_path / name).mkdir()
        rows = sampled(curating(tmp_path / name, *given, sample={"n": 2, "shard_size": 1}), RunDir(tmp_path / name / "run"))
        ids.append({text: [(one.completion_id, one.text) for one in row.completions] for text, row in rows.items()})
    assert ids[0] == ids[1] and len(ids[0]["one"]) == 2


def test_given_scores_rank_given_answers(tmp_path: Path) -> None:
    recipe = curating(
        tmp_path,
        {"prompt": "pair", "chosen": "good", "rejected": "bad"},
        {"prompt": "scored", "completions": ["one", "two", "three"], "scores": [0.1, 0.9, 0.5]},
        {"prompt": "alone", "completion": "only one", "score": 1},
        {"prompt": "half", "completions": ["scored", "not"], "scores": [1, None]},
    )
    run = RunDir(tmp_path / "run")
    pipeline.run(recipe, run)
    rankings = {row.prompt_id: row for row in run.stage("rank").rows(Ranking)}
    ids = {row.prompt[0]["content"]: row.prompt_id for row in run.stage("sample").rows(Sample)}
    assert rankings[ids["scored"]].scores == [0.1, 0.9, 0.5]
    assert rankings[ids["alone"]].abstained == "1 of 1 answers came with a score"
    assert rankings[ids["half"]].abstained == "1 of 2 answers came with a score"
    pairs = {row.prompt[0]["content"]: row for row in run.stage("pair").rows(PreferencePair, "train.parquet")}
    assert {text: (row.chosen[0]["content"], row.rejected[0]["content"]) for text, row in pairs.items()} == {
        "pair": ("good", "bad"),
        "scored": ("two", "one"),
    }
    dropped = {row.prompt[0]["content"]: row for row in run.stage("pair").rows(DroppedPair, "dropped.parquet")}
    assert dropped["alone"].filter == "abstained" and "1 of 1" in dropped["alone"].reason
    assert {step.name: step.count for step in facts.funnel(run)}["read"] == 4


def completion(score: float | None) -> Completion:
    return Completion(str(score), 0, "t", None, None, None, "m", None, score)


@pytest.mark.parametrize(
    ("scores", "told", "abstained"),
    [
        ([1.0, 2.0], [1.0, 2.0], None),
        ([1.0, math.nan, 2.0], [1.0, None, 2.0], None),
        ([1.0, math.inf], [None, None], "1 of 2 answers came with a score"),
        ([None, None, -1.0], [None, None, None], "1 of 3 answers came with a score"),
        ([], [], "0 of 0 answers came with a score"),
    ],
)
def test_a_score_that_is_none_is_never_zero(
    scores: list[float | None], told: list[float | None], abstained: str | None
) -> None:
    group = Sample("p", [{"role": "user", "content": "?"}], "s", [completion(score) for score in scores], None)
    (ranking,) = GivenJudge().rank([group])
    assert (ranking.scores, ranking.abstained, ranking.judge) == (told, abstained, "given")
    assert ranking.completion_ids == [str(score) for score in scores]


def test_any_other_judge_ranks_given_answers(tmp_path: Path) -> None:
    recipe = curating(tmp_path, {"prompt": "q", "chosen": "a long one that rambles", "rejected": "short"}, judge=RULE)
    run = RunDir(tmp_path / "run")
    pipeline.run(recipe, run)
    (pair,) = run.stage("pair").rows(PreferencePair, "train.parquet")
    assert (pair.chosen[0]["content"], pair.score_chosen, pair.score_rejected) == ("short", -1, -5)


def test_answers_that_call_tools_come_through(tmp_path: Path) -> None:
    tool = {
        "type": "function",
        "function": {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}
    good = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    recipe = curating(
        tmp_path,
        {
            "prompt": [{"role": "user", "content": "where?"}],
            "tools": [tool],
            "chosen": good,
            "rejected": [{"role": "assistant", "content": "no idea"}],
        },
    )
    run = RunDir(tmp_path / "run")
    pipeline.run(recipe, run)
    assert run.stage("sample").require()["tools"] is True
    (pair,) = run.stage("pair").rows(PreferencePair, "train.parquet")
    assert pair.chosen == good and pair.tools == [tool]


def test_a_prompt_without_an_answer_is_kept_with_its_error(tmp_path: Path) -> None:
    recipe = curating(tmp_path, flat("a", "b"), {"prompt": "nobody answered"})
    with pytest.raises(
        TooManyFailures, match="1 of 2 prompts could not be sampled; the first: no answer came with this prompt"
    ):
        sampled(recipe, RunDir(tmp_path / "run"))
    rows = sampled(curating(tmp_path, flat("a", "b"), {"prompt": "none"}, sample={"max_failed": 0.9}), RunDir(tmp_path / "two"))
    assert (rows["none"].error, rows["none"].completions) == ("no answer came with this prompt", [])


def test_held_out_and_repeated_prompts_take_their_answers_along(tmp_path: Path) -> None:
    long = " ".join(f"w{at}" for at in range(60))
    records = [flat(f"question {at} about {at * 3} hills", f"answer {side}", side) for side in (0, 1) for at in range(40)]
    recipe = curating(tmp_path, *records, flat(long, "x", 1), flat(long + " end", "y", 1), holdout=0.25)
    run = RunDir(tmp_path / "run")
    rows = sampled(recipe, run)
    manifest = run.stage("sample").require()
    assert manifest["read"] == 42 == manifest["prompts"] + manifest["held_out"] + manifest["near_duplicates"]
    assert manifest["near_duplicates"] == 1 and manifest["held_out"] > 3
    assert [row.filter for row in run.stage("sample").rows(DroppedPrompt, "dropped.parquet")] == ["near_duplicate"]
    assert sorted(len(row.completions) for row in rows.values())[-1] == 2


def test_a_plan_counts_what_is_given(tmp_path: Path) -> None:
    engine = {"type": "echo"}
    records = [{"prompt": f"q{n}", "completions": [f"a{at}" for at in range(n)]} for n in (1, 2, 3, 7)]
    recipe = curating(tmp_path, *records, judge={"type": "pairwise", "engine": engine})
    counts = count(recipe, RunDir(tmp_path / "run"))
    assert counts["completions"] == 13 and counts["use"]["sample"] == {}
    assert counts["judge_calls"] == 2 * (0 + 1 + 3 + 9), (
        "up to four meet all the others, seven a knock-out and its bottom bracket"
    )
    assert counts["use"]["rank"]["echo"].calls <= counts["judge_calls"]
    assert "13 (as given)" in plan(recipe, RunDir(tmp_path / "run"))


def test_lost_shards_alone_are_made_again(tmp_path: Path) -> None:
    records = [flat(f"question {at} about {at * 3} hills", f"answer {side}", side) for side in (0, 1) for at in range(40)]
    recipe, run = curating(tmp_path, *records, sample={"shard_size": 8}), RunDir(tmp_path / "run")
    sampled(recipe, run)
    stage = run.stage("sample")
    whole = {path.name: path.read_bytes() for path in stage.path.glob("*.parquet")}
    for name in ("00001.parquet", "00004.parquet", "manifest.json"):
        (stage.path / name).unlink()
    sampled(recipe, run)
    assert {path.name: path.read_bytes() for path in stage.path.glob("*.parquet")} == whole


ECHO = {"engine": {"type": "echo"}}
TRAINED = {"train": {"model": "m"}, "prompts": {"path": "p", "holdout": 0.1}}


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"sample": ECHO}, "'given' takes the scores that came with given answers, and 'echo' generates them"),
        ({"rank": {"judge": {"type": "pairwise"}}}, r"'pairwise' has no engine of its own.*\[rank\.judge\.engine\]"),
        (
            {"rank": {"judge": {"type": "pairwise", "engine": GIVEN}}},
            "'rank.judge.engine.type' in the recipe is 'given'. Use one",
        ),
        ({"train": {}}, "does not say which model to train. Set train.model"),
        (TRAINED, "cannot score what the models answer.*holdout = 0"),
        (
            {**TRAINED, "rank": {"judge": {"type": "cascade", "first": GIVEN, "then": RULE, "route": "extremes"}}},
            "cannot score what the models answer.*at rank.judge.first",
        ),
        ({"sample": {"engine": {**GIVEN, "path": "p"}}}, "Unknown key 'sample.engine.path'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tables: dict[str, Any], told: str) -> None:
    whole = {"name": "t", "prompts": {"path": "p"}, "sample": {"engine": GIVEN}, "rank": {"judge": GIVEN}}
    assert parse(whole)
    with pytest.raises(RecipeError, match=told) as error:
        parse({**whole, **tables})
    assert "\n" not in str(error.value)


def test_where_given_scores_end_another_judge_goes_on() -> None:
    """What came without a score, as a trained model's answers do, is judged by the second of a cascade."""
    judge = {"type": "cascade", "first": GIVEN, "then": RULE}
    recipe = parse({"name": "t", "sample": {"engine": GIVEN}, "rank": {"judge": judge}, **TRAINED})
    answers = [Completion(text, 0, text, None, None, None, "m") for text in ("short", "a longer one")]
    with closing(recipe.rank.judge.build(Given(), 0, no_engines)) as cascade:
        (ranking,) = cascade.rank([Sample("p", [{"role": "user", "content": "?"}], "s", answers, None)])
    assert ranking.scores == [-1, -3]


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    recipe = load("flows/recipes/given.toml", [f"prompts.path={tmp_path}/none.json"])
    with pytest.raises(InputError, match=r"No prompts at .*none\.json"):
        pipeline.run(recipe, RunDir(tmp_path / "run"))


@pytest.mark.skipif(not REAL.exists(), reason=f"real data is not here: {REAL}")
def test_the_shipped_recipe_curates_real_pairs(tmp_path: Path) -> None:
    recipe, run = load("flows/recipes/given.toml", [f"prompts.path={REAL}"]), RunDir(tmp_path / "run")
    pipeline.run(recipe, run)
    manifest = run.stage("sample").require()
    assert manifest["shape"] == "ShareGPT conversations, answered by chosen and rejected"
    assert (manifest["read"], manifest["prompts"], manifest["models"]) == (295, 295, {"unknown": 600})
    pairs = [row for name in ("train", "test") for row in run.stage("pair").rows(PreferencePair, f"{name}.parquet")]
    assert 270 <= len(pairs) <= 295 and len({row.prompt_id for row in pairs}) == len(pairs)
    records = json.loads(REAL.read_text(encoding="utf-8"))
    sides = {(record["chosen"]["value"], record["rejected"]["value"]) for record in records}
    ours = {(row.chosen[0]["content"], row.rejected[0]["content"]) for row in pairs}
    assert len(ours & sides) >= 265, "but for prompts with two pairs, what was preferred still is"
    assert all(row.score_chosen > row.score_rejected for row in pairs)
    gone = list(run.stage("pair").rows(DroppedPair, "dropped.parquet"))
    assert len(gone) + len(pairs) == 295 and all(row.reason for row in gone)
