"""Where data and settings of a training disagree: what is said, and where."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_data import pipeline
from dpo_data.config import Recipe
from dpo_data.hints import PairStats, hints, pair_stats
from dpo_data.models import parameters
from dpo_data.plan import plan
from dpo_data.report import report
from dpo_data.rows import Completion, DroppedPair, PreferencePair, Sample
from dpo_data.rundir import RunDir

FINE = PairStats(pairs=10_000, cut_off=0, too_long=0)

LLAMA_7B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
GPT2 = {"n_embd": 768, "n_layer": 12, "vocab_size": 50257}
QWEN_HALF_B = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}


@pytest.fixture
def model(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes the config.json of a model, and returns its folder."""

    def write(config: dict[str, Any]) -> str:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return write


def said(recipe: Recipe, stats: PairStats | None = FINE) -> str:
    return "\n".join(hints(recipe, stats))


def test_what_agrees_is_passed_over(recipe: Callable[..., Recipe], model: Any) -> None:
    assert said(recipe(train={"model": model(LLAMA_7B)})) == "", "the defaults, on a model for which they are meant"
    assert hints(recipe(), None) == [], "no training"
    assert said(recipe(train={})) == "", "no model, which training says by itself"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 4}, "train.epochs is 4; 1 to 3 is usual"),
        ({"epochs": 0.5}, "train.epochs is 0.5; 1 to 3 is usual"),
        ({"beta": 0.01}, "train.beta is 0.01; 0.1 to 0.5 is usual for the loss sigmoid"),
        ({"beta": 0.6, "loss": ["ipo", "sft"]}, "0.1 to 0.5 is usual for the loss ipo+sft"),
        ({"loss": "simpo"}, "train.beta is 0.1; 2 to 10 is usual for the loss simpo"),
        ({"learning_rate": 1e-4}, "train.learning_rate is 0.0001 for 6.74B parameters; 5e-06 to 1e-05 is usual"),
    ],
)
def test_settings_that_are_unusual(recipe: Callable[..., Recipe], model: Any, settings: dict[str, Any], expected: str) -> None:
    found = hints(recipe(train={"model": model(LLAMA_7B), **settings}), FINE)
    assert len(found) == 1 and expected in found[0]


@pytest.mark.parametrize("settings", [{"loss": "simpo", "beta": 2.5}, {"loss": "orpo", "beta": 0.05}, {"method": "full"}])
def test_settings_that_are_usual_for_what_they_are_of(recipe: Callable[..., Recipe], model: Any, settings: Any) -> None:
    """ORPO's beta is the weight of a term, and all weights have learning rates of their own."""
    assert said(recipe(train={"model": model(QWEN_HALF_B), "learning_rate": 1e-4, **settings})) == ""


def test_a_small_model_wants_a_larger_rate(recipe: Callable[..., Recipe], model: Any, tmp_path: Path) -> None:
    assert "for 494M parameters" in said(recipe(train={"model": model(QWEN_HALF_B)}))
    assert said(recipe(train={"model": model(QWEN_HALF_B), "learning_rate": 1e-4})) == ""
    assert said(recipe(train={"model": str(tmp_path / "runs" / "not" / "made" / "yet")})) == ""
    assert said(recipe(train={"model": model({"model_type": "of no kind that is known"})})) == ""


@pytest.mark.parametrize(
    ("config", "published"),
    [(LLAMA_7B, 6.74e9), (GPT2, 124e6), (QWEN_HALF_B, 494e6)],
)
def test_size_is_near_what_is_published(model: Any, config: dict[str, Any], published: float) -> None:
    assert parameters(model(config)) == pytest.approx(published, rel=0.03)


def test_size_is_near_that_of_the_weights(tiny_model: str) -> None:
    from safetensors import safe_open

    with safe_open(Path(tiny_model) / "model.safetensors", "np") as weights:
        names = weights.keys()
        shapes = [weights.get_slice(name).get_shape() for name in names]
    count = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)
    assert parameters(tiny_model) == pytest.approx(count, rel=0.2)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (500, "500 pairs are few: a narrow task (one style, one format) wants 2,000"),
        (2_000, "2,000 pairs do for a narrow task; a clear change over many topics wants 5,000 to 10,000"),
        (5_000, ""),
    ],
)
def test_how_many_pairs_a_task_wants(recipe: Callable[..., Recipe], model: Any, pairs: int, expected: str) -> None:
    found = said(recipe(train={"model": model(LLAMA_7B)}), PairStats(pairs, 0, 0))
    assert found.startswith(expected) and bool(found) == bool(expected)


def a_run(path: Path, finish_reason: str, n_tokens: int) -> RunDir:
    """Three pairs, one of whose chosen answers ended as given, and one of whose rejected answers is so long."""
    run = RunDir(path)
    prompts = [[{"role": "user", "content": f"Question {at}"}] for at in range(3)]
    completions = [
        [
            Completion(f"c{at}", 0, "Yes", finish_reason if at == 0 else "stop", 1, None, "echo"),
            Completion(f"r{at}", 1, "No", "stop", n_tokens if at == 1 else 1, None, "echo"),
        ]
        for at in range(3)
    ]
    sample = run.stage("sample").open({}, {})
    rows = [Sample(f"p{at}", prompts[at], "made", completions[at], None) for at in range(3)]
    sample.write("00000.parquet", rows, Sample)
    pair = run.stage("pair").open({}, {})
    said = [[{"role": "assistant", "content": text}] for text in ("Yes", "No")]
    pairs = [
        PreferencePair(
            *(f"p{at}", prompts[at], *said, f"c{at}", f"r{at}", 1.0, 0.0, 1.0, 1, completions[at][1].n_tokens),
            *("rule:concise", "echo", "echo", "made", []),
        )
        for at in range(3)
    ]
    pair.write("train.parquet", pairs, PreferencePair)
    pair.write("dropped.parquet", [], DroppedPair)
    pair.finish(train=3, test=0)
    return run


def test_what_the_run_tells_of_its_pairs(recipe: Callable[..., Recipe], model: Any, tmp_path: Path) -> None:
    made = recipe(train={"model": model(LLAMA_7B), "max_length": 16})
    assert pair_stats(made, RunDir(tmp_path / "none")) is None
    assert pair_stats(made, a_run(tmp_path / "fine", "stop", 16)) == PairStats(3, 0, 0)
    stats = pair_stats(made, a_run(tmp_path / "other", "length", 17))
    assert stats == PairStats(3, 1, 1)
    assert "1 chosen answers were cut off at sample.max_tokens = 8" in said(made, stats)
    assert "1 pairs have an answer longer than train.max_length = 16" in said(made, stats)


def test_a_plan_and_a_report_say_them(recipe: Callable[..., Recipe], tiny_model: str, tmp_path: Path) -> None:
    """The same sentences in both, those about pairs once there are some."""
    run = RunDir(tmp_path / "run")
    made = recipe(train={"model": tiny_model, "learning_rate": 1e-3, "epochs": 5})
    assert "  hint         train.epochs is 5; 1 to 3 is usual" in plan(made, run) and "pairs are few" not in said(made, None)
    for stage in ("sample", "rank", "pair"):
        pipeline.run_stage(stage, made, run, lambda *_: None)
    expected = hints(made, pair_stats(made, run))
    assert any("pairs are few" in hint for hint in expected)
    assert [line.removeprefix("  hint         ") for line in plan(made, run).splitlines() if "  hint  " in line] == expected
    assert report(made, run)["hints"] == expected
