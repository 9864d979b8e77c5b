"""One round against two on the demo, with the same prompts, answers and epochs: is sampling anew worth it?

    python benchmarks/rounds.py [SEED …]

Each seed has a model of its own, trained from scratch, and held-out prompts of its own. `one` samples all other prompts from
the base and trains once. `two` gives each half of them to a round: the second half is sampled from the model that the first has
trained. So both sample each prompt once, eight answers each, judge as many, and train each pair for two epochs. `two, all`
takes every prompt in both rounds, which samples and trains twice as much.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from dpo_data import pipeline
from dpo_data.config import load
from dpo_data.demo import model
from dpo_data.rundir import RunDir

RECIPE = "flows/recipes/demo.toml"
ARMS: dict[str, list[str]] = {
    "one": [],
    "two": ["rounds.count=2", "rounds.reused=false"],
    "two, all": ["rounds.count=2"],
}


def main(seeds: list[int]) -> None:
    """Print a line a seed and arm, and the means."""
    gains: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in seeds or [0, 1, 2]:
        with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
            for arm, changes in ARMS.items():
                began = time.monotonic()
                told = _run(seed, changes, Path(folder), arm)
                gains[arm].append(told[-1]["trained"]["score"] - told[-1]["base"]["score"])
                print(f"seed {seed}  {arm:<9} {'; '.join(map(_line, told))}; {time.monotonic() - began:.0f} s", flush=True)
    for arm, found in gains.items():
        print(f"mean gain  {arm:<9} {100 * fmean(found):+.1f} points", flush=True)


def _run(seed: int, changes: list[str], folder: Path, arm: str) -> list[dict[str, Any]]:
    """What evaluate tells of each round."""
    made = load(RECIPE, [f"seed={seed}", f"sample.engine.model={folder}/demo", *changes])
    model.make(made)
    run = RunDir(folder / arm.replace(", ", "-"))
    pipeline.run(made, run)
    return [one.stage("evaluate").require() for one in run.rounds or [run]]


def _line(told: dict[str, Any]) -> str:
    base, trained, gain = told["base"], told["trained"], told["gain"]
    last = gain["over_last"]
    over_last = (
        f", over the last round {100 * last['value']:+.1f} ({100 * last['low']:+.1f} to {100 * last['high']:+.1f})"
        if last
        else ""
    )
    return (
        f"{100 * base['score']:.1f} → {100 * trained['score']:.1f} %, correct {100 * trained['shares']['correct']:.1f} %, "
        f"win rate against the base {100 * trained['win_rate']:.1f} %{over_last}"
    )


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]])
