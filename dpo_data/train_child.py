"""The child's side of training: TRL's DPOTrainer, with every surprising default set on purpose."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from dpo_data.child import Parent
from dpo_data.errors import TrainError


def work(parent: Parent) -> None:
    """Do the one job that the parent sends, and tell it of every step and of the end."""
    job = parent.receive()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    try:
        parent.send({"done": _train(job, parent)})
    except TrainError as error:
        parent.send({"failed": error.what, "remedy": error.remedy})
    parent.receive()  # the parent closes when it has read the last word


def _train(job: dict[str, Any], parent: Parent) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOTrainer

    settings, folder = job["settings"], Path(job["folder"])
    cuda = torch.cuda.is_available()
    bf16 = settings["precision"] == "bf16" or (settings["precision"] == "auto" and cuda and torch.cuda.is_bf16_supported())
    lora = settings["method"] == "lora"
    tokenizer = AutoTokenizer.from_pretrained(job["model"], revision=job["revision"])
    if not tokenizer.chat_template:
        raise TrainError(f"{job['model']} has no chat template, so its prompts have no form", "Use an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def weights() -> Any:
        dtype = torch.bfloat16 if bf16 and lora else torch.float32
        return AutoModelForCausalLM.from_pretrained(job["model"], revision=job["revision"], dtype=dtype)

    model = weights()
    limit = settings["max_length"] or getattr(model.config, "max_position_embeddings", None)
    pairs, longest, too_long = _fitting(_read(job["train"]), tokenizer, limit)
    test, _, _ = _fitting(_read(job["test"]), tokenizer, limit)
    if not len(pairs):
        raise TrainError(
            f"No pair fits into max_length {limit} tokens; the shortest needs {longest}", "Raise train.max_length."
        )
    trainer = DPOTrainer(
        model=model,
        ref_model=None if lora else weights(),  # with LoRA the reference is the model with its adapter off
        args=_config(job, bf16, cuda, len(pairs)),
        train_dataset=pairs,
        eval_dataset=test if len(test) else None,
        processing_class=tokenizer,
        peft_config=_lora(settings["lora"]) if lora else None,
        callbacks=[_reporter(parent)],
    )
    checkpoint = last_checkpoint(folder / "checkpoints")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    held_out = trainer.evaluate() if len(test) else {}
    partial = folder / ".model.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    trainer.save_model(str(partial))
    tokenizer.save_pretrained(str(partial))
    shutil.rmtree(folder / "model", ignore_errors=True)
    partial.rename(folder / "model")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "pairs": len(pairs),
        "too_long": too_long,
        "max_length": longest,
        "precision": "bf16" if bf16 else "fp32",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "steps": trainer.state.global_step,
        "resumed_at": int(checkpoint.name.split("-")[1]) if checkpoint else 0,
        "held_out": {name.removeprefix("eval_"): value for name, value in held_out.items() if "_per_second" not in name},
        "history": trainer.state.log_history,
    }


def _read(path: str) -> Any:
    """Prompt, chosen, rejected and, where there are some, tools of a pairs file as a Dataset, without the datasets cache."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    columns = [name for name in ("prompt", "chosen", "rejected", "tools") if name in pq.read_schema(path).names]
    return Dataset(pq.read_table(path, columns=columns))


def _fitting(pairs: Any, tokenizer: Any, limit: int | None) -> tuple[Any, int, int]:
    """The pairs whose longer side fits into `limit` tokens, the longest of them (or the shortest of all, where none fits), and
    how many do not fit. Cutting an answer's end takes its EOS away, so a pair that does not fit is left out whole."""

    def tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
        return json.loads(row["tools"]) if row.get("tools") else None

    lengths = [
        max(
            len(tokenizer.apply_chat_template(row["prompt"] + row[side], tools=tools(row), tokenize=True, return_dict=False))
            for side in ("chosen", "rejected")
        )
        for row in pairs
    ]
    keep = [at for at, length in enumerate(lengths) if limit is None or length <= limit]
    longest = max((lengths[at] for at in keep), default=min(lengths, default=0))
    return pairs.select(keep), longest, len(lengths) - len(keep)


def _config(job: dict[str, Any], bf16: bool, cuda: bool, pairs: int) -> Any:
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


def _lora(settings: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **settings)


def _reporter(parent: Parent) -> Any:
    """A callback that tells the parent each step and each log."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            parent.send({"step": state.global_step, "steps": state.max_steps})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, (int, float))}
            parent.send({"metrics": numbers, "at": state.global_step})

    return Reporter()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its state file comes last, and parses."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return checkpoint
    return None
