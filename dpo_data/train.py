"""DPO on the pairs, by TRL, in a child process that gives its memory back when it ends."""

import json
import logging
import os
from contextlib import closing
from typing import Any

from dpo_data import chat_template
from dpo_data.child import Child
from dpo_data.config import Prompts, Recipe
from dpo_data.demonstrations import demonstrations
from dpo_data.errors import TrainError
from dpo_data.formats.prompts import prompts_hash
from dpo_data.hints import hints, pair_stats
from dpo_data.models import find_adapter, find_model, model_revision, weights_revision
from dpo_data.rows import Sample
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress

CHECKPOINTS = r"(sft-)?checkpoints"
"""The folders of what training goes on from, until the stage is complete."""

log = logging.getLogger(__name__)

DEMONSTRATIONS = "demonstrations.parquet"
"""What `[train.sft] path` holds, as the child reads it."""


def train(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Train on `3-pair/train.parquet` into `4-train/model`, on from the last whole checkpoint. Returns the manifest."""
    assert recipe.train is not None
    pairs = run.stage("pair")
    pairs.require()
    stage = run.stage("train").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        stage.sweep(CHECKPOINTS)  # of who was killed as it finished
        return stage.manifest
    for hint in hints(recipe, pair_stats(recipe, run)):
        log.warning("hint: %s", hint)
    if prompts := _sft_prompts(recipe):
        stage.write(DEMONSTRATIONS, demonstrations(prompts), Sample)
    job = _job(recipe, run)
    with closing(Child("dpo_data.trainer.child:work", logger="train", env=_environment(recipe, run))) as child:
        child.send(job)
        while "done" not in (heard := child.receive()):
            if "failed" in heard:
                raise TrainError(heard["failed"], heard["remedy"])
            if "step" in heard:
                progress(heard["stage"], heard["step"], heard["steps"])
            if "saved" in heard:
                stage.keep()
            if "alarm" in heard:
                log.warning("train: step %d: %s", heard["at"], heard["alarm"])
            if "metrics" in heard:
                log.info("%s: step %d: %s", heard["stage"], heard["at"], {k: round(v, 4) for k, v in heard["metrics"].items()})
    stage.write_text("metrics.json", json.dumps(heard["done"].pop("history"), indent=1))
    policy = recipe.policy()
    return stage.finish(
        CHECKPOINTS,
        model=policy.model,
        model_revision=model_revision(policy.model, policy.revision),
        adapter=policy.adapter,
        **heard["done"],
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's result; where something may stop training, how often it is saved as well."""
    assert recipe.train is not None
    live = _live_gates(recipe)
    watched = recipe.train.early_stop or any(limit is not None for limit in live.values())
    return {
        **recipe.deciding("seed", "train"),
        "gates": live,
        "save_steps": recipe.train.save_steps if watched else None,
        **({"sft_prompts": prompts.model_dump(mode="json")} if (prompts := _sft_prompts(recipe)) else {}),
    }


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    policy = recipe.policy()
    return {
        **{name: run.stage(name).digest for name in ("sample", "pair")},
        "model": weights_revision(policy),
        "chat_template": chat_template.digest(policy.chat_template),
        **({"sft": prompts_hash(prompts)} if (prompts := _sft_prompts(recipe)) else {}),
    }


def _job(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """All that the child must know, as JSON."""
    assert recipe.train is not None
    policy, sampled, pairs = recipe.policy(), run.stage("sample"), run.stage("pair")
    return {
        "model": find_model(policy.model, policy.revision),
        "revision": policy.revision,
        "adapter": find_adapter(policy.adapter),
        "chat_template": chat_template.read(policy.chat_template) if policy.chat_template else None,
        "weights": {"revision": weights_revision(policy)},
        "policy": (sampled.manifest or {}).get("policy"),
        "samples": _samples(recipe, run),
        "demonstrations": str(run.stage("train").path / DEMONSTRATIONS) if _sft_prompts(recipe) else None,
        "train": str(pairs.path / "train.parquet"),
        "test": str(pairs.path / "test.parquet"),
        "folder": str(run.stage("train").path),
        "seed": recipe.seed,
        "gates": _live_gates(recipe),
        "settings": recipe.train.model_dump(mode="json"),
    }


def _sft_prompts(recipe: Recipe) -> Prompts | None:
    """What `[train.sft] path` names, in the form of the recipe's own prompts: the same system prompt and template variables."""
    path = recipe.train.sft.path if recipe.train and recipe.train.sft else None
    form = recipe.prompts.model_dump(include={"system", "chat_template_kwargs"})
    return Prompts(path=path, **form) if path else None


def _environment(recipe: Recipe, run: RunDir) -> dict[str, str]:
    """The child's: one process has one GPU, of several of which TRL would refuse to train; trackers write what stays here into
    the run's logs."""
    assert recipe.train is not None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {
        **({"CUDA_VISIBLE_DEVICES": visible} if recipe.train.processes == 1 else {}),
        "TOKENIZERS_PARALLELISM": "false",
        "TENSORBOARD_LOGGING_DIR": str(run.logs / "tensorboard"),
        "WANDB_DIR": str(run.logs),
    }


def _samples(recipe: Recipe, run: RunDir) -> list[str]:
    """The shards of samples whose tokens are those of the model to train: it, or an adapter on it, sampled them."""
    policy, sampled = recipe.policy(), run.stage("sample")
    told = (sampled.manifest or {}).get("policy") or {}
    base = str(told.get("revision")).partition("+")[0]
    return [str(path) for path in sampled.shards()] if base == model_revision(policy.model, policy.revision) else []


def _live_gates(recipe: Recipe) -> dict[str, Any]:
    """The gates that hold while it trains."""
    return {name: getattr(recipe.gates, name) for name in ("max_chosen_drop", "max_kl")}
