"""Every stage on the real engine and trainer, with a language model for a judge: no prompt is lost on the way."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_data.config import dump, parse
from dpo_data.pipeline import stages_of
from dpo_data.rundir import RunDir

pytest.importorskip("vllm")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quick_vllm")
def test_the_whole_pipeline(tiny_model: str, prompts: Callable[[int], str], tmp_path: Path) -> None:
    end = json.loads((Path(tiny_model) / "config.json").read_text())["eos_token_id"]  # made likely: a cut answer is not chosen
    text = prompts(90)
    recipe = parse(
        {
            "name": "whole",
            "prompts": {"path": prompts(40), "holdout": 0.3},
            "sample": {
                "n": 4,
                "max_tokens": 32,
                "params": {"logit_bias": {str(end): 2.0}},
                "engine": {"type": "vllm", "model": tiny_model, "args": {"dtype": "float32"}},
            },
            "rank": {"judge": {"type": "pairwise", "reason": 0, "params": {"temperature": 1.0, "max_tokens": 32}}},
            "pair": {"test": 0.2},
            "train": {"batch_size": 4, "learning_rate": 1e-4},
            "evaluate": {"n": 2, "must_parse": r"\w.*", "perplexity": text},
        }
    )
    file, run = tmp_path / "recipe.toml", RunDir(tmp_path / "run")
    file.write_text(dump(recipe))
    command = [sys.executable, "-m", "dpo_data.cli", "run", str(file), "--run", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sampled, ranked, paired, trained, evaluated = (run.stage(name).require() for name in stages_of(recipe))
    assert sampled["read"] == 40 == sampled["prompts"] + sampled["held_out"] and sampled["failed"] == 0
    assert ranked["prompts"] == paired["prompts"] == sampled["prompts"]
    dropped = {**paired["dropped_prompts"], **paired["dropped_pairs"]}
    assert paired["train"] + paired["test"] + sum(dropped.values()) == paired["prompts"]
    assert trained["pairs"] + trained["too_long"] == paired["train"] > 0 and trained["steps"] > 0
    assert trained["answers"]["rendered"] == trained["reference"]["computed"] == 0  # tokens and log-probs are vLLM's own
    assert trained["reference"]["sampled"] > 0 and trained["reference"]["off_by"] < 1e-4
    assert evaluated["prompts"] == sampled["held_out"]
    assert evaluated["base"]["answers"] == evaluated["trained"]["answers"] == 2 * sampled["held_out"]
    assert evaluated["last"] is None and evaluated["gain"]["over_last"] is None
    assert evaluated["gain"]["over_base"]["value"] == pytest.approx(evaluated["trained"]["win_rate"] - 0.5)
    assert 0 <= evaluated["trained"]["parsed"] <= 1 and evaluated["perplexity"]["texts"] == 90
    assert evaluated["perplexity"]["base"] != evaluated["perplexity"]["trained"], "it was trained"
    assert evaluated["verdict"].split(":")[0] in ("better", "worse", "not shown to be better")
    print({name: run.stage(name).require()["seconds"] for name in stages_of(recipe)}, dropped)
