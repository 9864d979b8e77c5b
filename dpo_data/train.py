"""DPO on the pairs, by TRL, in a child process that gives its memory back when it ends."""

import json
import logging
from contextlib import closing
from typing import Any

from dpo_data.child import Child
from dpo_data.config import Recipe
from dpo_data.errors import TrainError
from dpo_data.models import find_model, model_revision
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress

log = logging.getLogger(__name__)


def train(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Train on `3-pair/train.parquet` into `4-train/model`, on from the last whole checkpoint. Returns the manifest."""
    assert recipe.train is not None
    pairs = run.stage("pair")
    pairs.require()
    stage = run.stage("train").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    model, revision = recipe.base_model()
    job = {
        "model": find_model(model, revision),
        "revision": revision,
        "seed": recipe.seed,
        "train": str(pairs.path / "train.parquet"),
        "test": str(pairs.path / "test.parquet"),
        "folder": str(stage.path),
        "settings": recipe.train.model_dump(mode="json"),
    }
    with closing(Child("dpo_data.trainer.child:work", logger="train", env={"TOKENIZERS_PARALLELISM": "false"})) as child:
        child.send(job)
        while "done" not in (heard := child.receive()):
            if "failed" in heard:
                raise TrainError(heard["failed"], heard["remedy"])
            if "step" in heard:
                progress("train", heard["step"], heard["steps"])
            if "metrics" in heard:
                log.info("train: step %d: %s", heard["at"], {k: round(v, 4) for k, v in heard["metrics"].items()})
    stage.write_text("metrics.json", json.dumps(heard["done"].pop("history"), indent=1))
    return stage.finish(model=model, model_revision=model_revision(model, revision), **heard["done"])


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's result."""
    return recipe.deciding("seed", "train")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    model, revision = recipe.base_model()
    return {"pair": run.stage("pair").digest, "model": model_revision(model, revision)}
