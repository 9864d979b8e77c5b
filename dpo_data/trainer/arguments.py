"""What the recipe sets, as the arguments of TRL and peft."""

from pathlib import Path
from typing import Any

from dpo_data.errors import TrainError


def arguments(job: dict[str, Any], bf16: bool, cuda: bool, pairs: int) -> Any:
    """A DPOConfig. Raises TrainError where TRL refuses what `train.args` says."""
    from trl import DPOConfig

    settings = job["settings"]
    steps = settings["epochs"] * pairs / settings["batch_size"]
    given = {
        "output_dir": str(Path(job["folder"]) / "checkpoints"),
        "beta": settings["beta"],
        "learning_rate": settings["learning_rate"],
        "num_train_epochs": settings["epochs"],
        "per_device_train_batch_size": settings["batch_size"],
        "per_device_eval_batch_size": settings["batch_size"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "bf16": bf16,
        "fp16": False,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "max_length": None,  # what does not fit has been left out already; TRL would cut it without a word
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "logging_steps": max(1, min(50, round(steps / 40))),
        "save_strategy": "steps",
        "save_steps": settings["save_steps"],
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job["seed"],
        "data_seed": job["seed"],
    }
    try:
        return DPOConfig(**{**given, **settings["args"]})
    except (TypeError, ValueError) as error:
        raise TrainError(
            f"TRL refuses the training arguments: {error}", "Mend [train.args]; see DPOConfig in TRL's docs."
        ) from None


def lora(settings: dict[str, Any]) -> Any:
    """A peft LoraConfig of the recipe's `[train.lora]`."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **settings)
