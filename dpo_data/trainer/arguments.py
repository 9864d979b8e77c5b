"""What the recipe sets, as the arguments of TRL."""

import sys
from pathlib import Path
from typing import Any

from dpo_data.errors import TrainError
from dpo_data.trainer.losses import config_class, loss_arguments, reference_free
from dpo_data.trainer.watch import saving

BY_LENGTH = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
"""Batches of pairs that are equally long. The samplers read a column `length`, which a collator passes over."""


def arguments(job: dict[str, Any], bf16: bool, cuda: bool, pairs: int, test: int = 0) -> Any:
    """The configuration of the loss's trainer, for so many pairs, and for test. Raises TrainError where TRL refuses what the
    recipe says."""
    settings = job["settings"]
    common = _common(job, settings, bf16, cuda, pairs)
    steps = settings["epochs"] * pairs / settings["batch_size"]
    logging = _logging(settings["args"].get("logging_steps", common["logging_steps"]), steps)
    own = {
        "beta": settings["beta"],
        "max_length": sys.maxsize if reference_free(settings["loss"]) else None,  # of None those two trainers make 512
        "report_to": _trackers(settings["report_to"]),
        "run_name": Path(job["folder"]).parent.name,
        **saving(settings, job["gates"], steps, logging, test),
        **loss_arguments(settings["loss"]),
        **({} if reference_free(settings["loss"]) else BY_LENGTH),
    }
    given = {**common, "output_dir": str(Path(job["folder"]) / "checkpoints"), **own}
    return _made(config_class(settings["loss"]), {**given, **settings["args"], "logging_steps": logging}, "train.args")


def _logging(asked: float, steps: float) -> int:
    """Every how many steps to log, of transformers' `logging_steps`: below 1 it is a share of all. Raises TrainError."""
    if not asked > 0:
        raise TrainError(f"'train.args.logging_steps' is {asked!r}", "Give steps, or a share of them below 1.")
    return int(asked) if asked >= 1 else max(1, round(asked * steps))


def sft_arguments(job: dict[str, Any], bf16: bool, cuda: bool, rows: int) -> Any:
    """An SFTConfig by `[train.sft]`. Raises TrainError where TRL refuses what the recipe says."""
    from trl import SFTConfig

    settings, sft = job["settings"], job["settings"]["sft"]
    rate = sft["learning_rate"] or (2e-5 if settings["method"] == "full" else 2e-4)
    given = {
        **_common(job, {**sft, "learning_rate": rate}, bf16, cuda, rows),
        "output_dir": str(Path(job["folder"]) / "sft-checkpoints"),
        "save_steps": settings["save_steps"],
        "max_length": None,
        "report_to": "none",
    }
    return _made(SFTConfig, {**given, **sft["args"]}, "train.sft.args")


def _common(job: dict[str, Any], table: dict[str, Any], bf16: bool, cuda: bool, rows: int) -> dict[str, Any]:
    """What both kinds of training are given. `table`: the recipe's own rate, epochs and batch size; a step's batch is shared
    by the processes."""
    settings = job["settings"]
    steps = table["epochs"] * rows / table["batch_size"]
    return {
        "learning_rate": table["learning_rate"],
        "num_train_epochs": table["epochs"],
        "per_device_train_batch_size": table["batch_size"] // settings["processes"],
        "per_device_eval_batch_size": table["batch_size"] // settings["processes"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "bf16": bf16,
        "fp16": False,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "logging_steps": max(1, min(50, round(steps / 40))),
        "save_strategy": "steps",
        "save_total_limit": 2,
        "disable_tqdm": True,
        "seed": job["seed"],
        "data_seed": job["seed"],
    }


def _made(config: Any, given: dict[str, Any], table: str) -> Any:
    try:
        return config(**given)
    except (TypeError, ValueError) as error:
        raise TrainError(
            f"TRL refuses the training arguments: {error}", f"Mend [{table}]; see {config.__name__} in TRL's docs."
        ) from None


def _trackers(report_to: str | list[str]) -> str | list[str]:
    """Where training reports to, by transformers' names. Raises TrainError for one that it does not know or that is not
    installed, before a model is loaded."""
    from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

    try:
        get_reporting_integration_callbacks(report_to)
    except ValueError as error:
        raise TrainError(f"'train.report_to' is {report_to!r}: {error}", "Name one of those, or none.") from None
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name not in ("none", "all", *get_available_reporting_integrations()):
            raise TrainError(f"'train.report_to' names {name!r}, which is not installed", f"Run `pip install {name}`.")
    return report_to
