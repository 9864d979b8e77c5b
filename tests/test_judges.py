"""Any judge in the place of any other: the recipe's one table changes, and nothing else."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from dpo_data import pipeline
from dpo_data.config import Recipe, parse
from dpo_data.judges import JudgeSettings
from dpo_data.plan import plan
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.share import SHIPPED

JUDGES: dict[str, dict[str, Any]] = {
    "pairwise": {},
    "listwise": {},
    "rubric": {},
    "reward_model": {"backend": "transformers"},
    "rule": {"rule": "detailed"},
    "panel": {"judges": [{"type": "pairwise"}, {"type": "listwise"}, {"type": "rule", "rule": "concise"}]},
    "cascade": {"first": {"type": "rule", "rule": "detailed"}, "then": {"type": "rubric"}, "margin": 1},
}


def leaf_types(kind: Any) -> set[str]:
    """The `type` of every table that a union may hold."""
    if hasattr(kind, "model_fields"):
        return {kind.model_fields["type"].default}
    return {name for part in get_args(kind) for name in leaf_types(part)}


def test_every_judge_is_tried_here() -> None:
    """All but those who have tests of their own, because somebody must be there."""
    assert JUDGES.keys() | {"given", "argilla", "terminal"} == leaf_types(JudgeSettings)


@pytest.fixture(scope="module")
def reward_model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a reward model with random weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "reward"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig.from_pretrained(tiny_model, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("type", JUDGES)
def test_a_fork_has_the_same_samples_judged_by_any_judge(
    tmp_path: Path, recipe: Callable[..., Recipe], reward_model: str, type: str
) -> None:
    old, new = RunDir(tmp_path / "old"), RunDir(tmp_path / "new")
    pipeline.run(recipe(24), old)
    judge = {"type": type, **JUDGES[type], **({"model": reward_model} if type == "reward_model" else {})}
    made = recipe(24, rank={"judge": judge})
    assert pipeline.fork(old, new, made) == ["sample"]
    assert f"({type})" in plan(made, new)
    report = pipeline.run(made, new)
    rows = list(new.stage("rank").rows(Ranking))
    assert {row.prompt_id for row in rows} == set(old.stage("sample").column("prompt_id"))
    assert report["scores"]["judge"].startswith((f"{type}:", f"{type}("))
    assert report["scores"]["judged"] > 0 and report["pairs"]["train"] > 0
    for row in rows:
        assert (row.abstained is not None) == (sum(score is not None for score in row.scores) < 2)
        assert all("kind" in entry for entry in json.loads(row.transcript))
    text = (new.path / "report.html").read_text()
    assert report["scores"]["judge"].split(":")[0].split("(")[0] in text


def test_the_recipe_of_the_readme_is_one() -> None:
    """The table under "Judges" is what it says: a limit in money, a price, gates, and a cascade of two."""
    section = (SHIPPED / "README.md").read_text(encoding="utf-8").partition("\n## Judges\n")[2].partition("\n### ")[0]
    (block,) = re.findall(r"^```toml\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    base = {"name": "t", "prompts": {"path": "p"}, "sample": {"engine": {"type": "echo"}}}
    made = parse({**base, **tomllib.loads(block)})
    judge = made.rank.judge
    assert judge.type == "cascade" and (judge.first.type, judge.then.type) == ("reward_model", "pairwise")
    assert made.rank.max_cost == 20 and made.prices[judge.then.engine.model].output == 2.0 and made.gates.min_pairs == 1000  # type: ignore[union-attr]
    table = section.partition("\n```")[0]
    rows = {name: calls for name, calls in re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", table, re.MULTILINE)}
    assert rows.keys() - {"type"} == leaf_types(JudgeSettings), "every judge has a line"
    assert [parse_judge("pairwise").calls(n) for n in (2, 4, 8)] == [2, 12, 3 * 8 - 4] and rows["pairwise"].endswith("3N − 4")
    assert [parse_judge(name).calls(8) for name in ("listwise", "rubric")] == [2, 8]


def parse_judge(name: str) -> Any:
    return TypeAdapter(JudgeSettings).validate_python({"type": name})


@pytest.mark.parametrize("thinking", [False, True])
def test_thoughts_are_kept_in_the_data_and_from_the_judge(tmp_path: Path, thinking: bool) -> None:
    """The rule looks for a word that only the thoughts hold: it finds it where the recipe lets it look."""
    answers = ["<think>mulberry</think>yes, twice", "no such thing", "<think>mulberry, cut off"]
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Why {n}?", "completions": answers}) + "\n" for n in range(3)))
    judge = {"type": "rule", "rule": "regex", "args": {"pattern": "mulberry"}}
    tables = {"sample": {"engine": {"type": "given"}}, "rank": {"judge": judge, "thinking": thinking}}
    made, run = parse({"name": "t", "prompts": {"path": str(path), "near_duplicates": 1}, **tables}), RunDir(tmp_path / "run")
    for stage in ("sample", "rank"):
        pipeline.run_stage(stage, made, run, lambda *_: None)
    kept = list(run.stage("sample").rows(Sample))
    assert [[one.text for one in row.completions] for row in kept] == [answers] * 3
    assert [row.scores for row in run.stage("rank").rows(Ranking)] == [[1.0, 0.0, 1.0] if thinking else [0.0] * 3] * 3
