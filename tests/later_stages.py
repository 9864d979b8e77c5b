"""What train and evaluate leave in a run's folder, made up: nothing is trained and nothing is sampled."""

import json
import shutil
from pathlib import Path
from typing import Any

from test_evaluate import by_length, compared

from dpo_data.config import Evaluate
from dpo_data.evaluation.summary import summary
from dpo_data.rows import Ranking, Sample
from dpo_data.rundir import RunDir


def trained(
    run: RunDir, model: Path | None = None, name: str = "tester/base", revision: str = "sha256:1", fall: float = 1.0
) -> None:
    """A log of two entries, in which the chosen answers' log-probability falls by so many nats; and that `model`."""
    stage = run.stage("train").open({}, {"model": revision})
    if model:
        shutil.copytree(model, stage.path / "model")
    logged = [{"step": step, "loss": 0.7 - step / 50, "logps/chosen": -20.0 - fall * step / 10} for step in (5, 10)]
    stage.write_text("metrics.json", json.dumps([*logged, {"step": 10, "eval_loss": 0.5}]))
    stage.finish(
        model=name, model_revision=revision, pairs=30, too_long=2, max_length=50, precision="fp32", device="cpu", steps=10,
        resumed_at=0, held_out={"loss": 0.5, "rewards/accuracies": 0.9},
    )  # fmt: skip


def evaluated(run: RunDir, quality: float = 0.5, seed: int = 0, **settings: Any) -> None:
    """The trained model's answers are longer, and better by `quality`, to as many prompts as are held out."""
    samples, rankings = compared(*by_length(run.stage("sample").require()["held_out"], quality, seed))
    stage = run.stage("evaluate").open({}, {})
    for who, rows in samples.items():
        stage.write(f"{who}.parquet", rows, Sample)
    stage.write("rank.parquet", rankings, Ranking)
    found = summary(samples, rankings, Evaluate(**settings), run.stage("train").require())
    stage.finish(**found.model_dump(mode="json"))
