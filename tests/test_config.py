"""A recipe parses, or says which key is wrong and which one was meant."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dpo_data.config import Recipe, dump, load, parse
from dpo_data.errors import RecipeError
from dpo_data.share import SHIPPED

SHIPPED_RECIPES = sorted((SHIPPED / "flows" / "recipes").glob("*.toml"))
BASE: dict[str, Any] = {
    "name": "base",
    "prompts": {"path": "prompts.jsonl"},
    "sample": {"engine": {"type": "echo"}},
    "rank": {"judge": {"type": "pairwise"}},
}


def table(key: str, value: Any) -> dict[str, Any]:
    """The base recipe with `key` (dotted) set, tables made on the way."""
    made = copy.deepcopy(BASE)
    *path, last = key.split(".")
    at = made
    for part in path:
        at = at.setdefault(part, {})
    at[last] = value
    return made


def refusal(given: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as error:
        parse(given, "my.toml")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", SHIPPED_RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_survives_its_dump(path: Path) -> None:
    recipe = load(path)
    assert parse(tomllib.loads(dump(recipe))) == recipe
    assert recipe.name == path.stem, "the run directory is named after the recipe"


def test_there_are_shipped_recipes() -> None:
    assert SHIPPED_RECIPES


def test_a_full_recipe_survives_its_dump(tmp_path: Path) -> None:
    recipe = parse(
        {
            "name": "full-1.0_b",
            "seed": 7,
            "prompts": {"path": 'prämpts \\ "q".jsonl', "holdout": 0.25, "limit": 10},
            "sample": {
                "n": 5,
                "params": {"stop": ["\n", "###"], "min_p": 0.1, "nested": {"a": [1, 2.5, True]}},
                "engine": {"type": "vllm", "model": "m", "args": {"dtype": "float32"}},
            },
            "rank": {"judge": {"type": "pairwise", "engine": {"type": "server", "base_url": "http://h/v1", "model": "j"}}},
            "train": {"lora": {"target_modules": ["q_proj"]}, "args": {"warmup_ratio": 0.1}},
            "evaluate": {"thresholds": {"two words": 2}},
        }
    )
    file = tmp_path / "recipe.toml"
    file.write_text(dump(recipe), encoding="utf-8")
    assert load(file) == recipe


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("promts", "prompts"),
        ("prompts.pth", "path"),
        ("sample.tempratur", "temperature"),
        ("sample.engine.dely", "delay"),
        ("rank.max_abstain", "max_abstained"),
        ("rank.judge.templat", "template"),
        ("pair.stratgy", "strategy"),
        ("train.learning_rat", "learning_rate"),
        ("train.lora.lora_alfa", "lora_alpha"),
        ("evaluate.threshold", "thresholds"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(wrong: str, meant: str) -> None:
    assert refusal(table(wrong, 1)) == f"Unknown key {wrong!r} in my.toml. Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("engine", "wrong", "meant"),
    [
        ({"type": "vllm", "modle": "m"}, "modle", "model"),  # the missing key is a consequence of the unknown one
        ({"type": "server", "base_url": "u", "model": "m", "concurency": 1}, "concurency", "concurrency"),
        ({"type": "echo", "dely": 1}, "dely", "delay"),
    ],
)
def test_the_judges_own_engine_is_as_strict_as_the_sampler(engine: dict[str, Any], wrong: str, meant: str) -> None:
    for place in ("sample.engine", "rank.judge.engine"):
        assert refusal(table(place, engine)) == f"Unknown key '{place}.{wrong}' in my.toml. Did you mean {meant!r}?"


def test_an_unknown_key_with_no_near_one_lists_those_that_are_known() -> None:
    told = "Unknown key 'train.lora.rnak' in my.toml. Known there: r, lora_alpha, lora_dropout, target_modules."
    assert refusal(table("train.lora.rnak", 8)) == told
    told = "Unknown key 'sample.engine.echo' in my.toml. Known there: type, delay, workers, gpus_per_worker."
    assert refusal(table("sample.engine.echo", 1)) == told
    assert refusal(table("xyz", 8)).startswith("Unknown key 'xyz' in my.toml. Known there: name, seed, prompts,")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("sample.n", "eight", "'sample.n' in my.toml is 'eight': Input should be a valid integer"),
        ("sample.n", 1, "'sample.n' in my.toml is 1: Input should be greater than or equal to 2"),
        ("sample.engine", 3, "'sample.engine' in my.toml is 3: Input should be a valid dictionary"),
        ("sample.engine.delay", "slow", "'sample.engine.delay' in my.toml is 'slow': Input should be a valid number"),
        ("sample.engine", {}, "my.toml lacks 'sample.engine.type'"),
        ("sample.engine", {"type": "vlm"}, "'sample.engine.type' in my.toml is 'vlm'. Use one of 'vllm', 'server', 'echo'"),
        ("sample.engine", {"type": "vllm"}, "my.toml lacks 'sample.engine.model'"),
        ("rank.judge", {"type": "pairwise", "engine": {"type": "x"}}, "'rank.judge.engine.type' in my.toml is 'x'"),
        ("rank.judge", {"type": "rule"}, "my.toml lacks 'rank.judge.rule'"),
        ("pair.strategy", "best", "'pair.strategy' in my.toml is 'best': Input should be"),
        ("train.method", "dora", "'train.method' in my.toml is 'dora': Input should be 'lora', 'qlora' or 'full'"),
        ("evaluate.thresholds", {"good": "high"}, "'evaluate.thresholds.good' in my.toml is 'high'"),
        ("prompts.holdout", 1.0, "'prompts.holdout' in my.toml is 1.0: Input should be less than 1"),
        ("name", "../elsewhere", "'name' in my.toml is '../elsewhere'"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any, told: str) -> None:
    assert refusal(table(key, value)).startswith(told)


@pytest.mark.parametrize("missing", ["name", "prompts", "sample", "rank"])
def test_a_missing_key_is_named(missing: str) -> None:
    given = copy.deepcopy(BASE)
    del given[missing]
    assert refusal(given) == f"my.toml lacks {missing!r}. Add it."


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "my.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


GOOD = """name = "base"
[prompts]
path = "p.jsonl"
[sample.engine]
type = "echo"
[rank.judge]
type = "pairwise"
"""


def test_a_missing_recipe_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RecipeError, match=f"No recipe at {path}"):
            load(path)


@pytest.mark.parametrize(
    "text", [GOOD + "n = = 3", GOOD + "[sample.engine]\n", b"name = '\xff'"], ids=["value", "twice", "bytes"]
)
def test_broken_toml_says_where(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(RecipeError, match=r"my\.toml is not TOML: .*(line 8|position)"):
        load(write(tmp_path, text))


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    assert load(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())) == parse(BASE | {"prompts": {"path": "p.jsonl"}})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("sample.n=4", lambda recipe: recipe.sample.n == 4),
        ("sample.temperature = 0.5", lambda recipe: recipe.sample.temperature == 0.5),
        ("name=other", lambda recipe: recipe.name == "other"),
        ('name="other"', lambda recipe: recipe.name == "other"),
        ("prompts.path=a=b.jsonl", lambda recipe: recipe.prompts.path == "a=b.jsonl"),
        ("pair.reject_truncated=true", lambda recipe: recipe.pair.reject_truncated is True),
        ("train.lora.r=4", lambda recipe: recipe.train.lora.r == 4),
        ('sample.params.stop=["a"]', lambda recipe: recipe.sample.params == {"stop": ["a"]}),
        ('rank.judge={type="rule", rule="concise"}', lambda recipe: recipe.rank.judge.rule == "concise"),
    ],
)
def test_set_changes_one_value(tmp_path: Path, change: str, found: Any) -> None:
    assert found(load(write(tmp_path, GOOD), [change]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("sample.n", "--set 'sample.n' has no '='. Write it as --set sample.n=4."),
        ("sample.nn=4", "Unknown key 'sample.nn' in"),
        ("sample.n=many", "'sample.n' in .* is 'many'"),
        ("name.first=Ada", "--set 'name.first=Ada' goes into 'name', which is no table but 'base'"),
    ],
)
def test_a_wrong_set_is_refused(tmp_path: Path, change: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load(write(tmp_path, GOOD), [change])


def test_later_changes_win(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD), ["sample.n=4", "sample.n=5"]).sample.n == 5


def test_a_recipe_is_frozen() -> None:
    recipe: Recipe = parse(BASE)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


def test_what_decides_no_row_may_change() -> None:
    """At every depth: a ceiling of the stage, and how a server is called. What decides a row stays."""
    server = {"type": "server", "base_url": "http://127.0.0.1:1/v1", "model": "m"}

    def settings(**sample: Any) -> dict[str, Any]:
        given = {"engine": server, **sample}
        rank = {"judge": {"type": "rule", "rule": "concise"}}
        return parse({"name": "t", "prompts": {"path": "p"}, "sample": given, "rank": rank}).deciding("seed", "sample")

    assert settings() == settings(max_failed=0.5, engine={**server, "concurrency": 2, "timeout": 1, "key_env": "MINE"})
    assert settings() != settings(engine={**server, "model": "other"})
    assert settings() != settings(n=4)
    assert settings()["sample"]["engine"] == {**server, "logprobs": True, "structured": True}
