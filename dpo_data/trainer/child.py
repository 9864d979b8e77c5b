"""The child's side of training: TRL's DPOTrainer, with every surprising default set on purpose."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from dpo_data.child import Parent
from dpo_data.errors import TrainError
from dpo_data.trainer.arguments import arguments, lora
from dpo_data.trainer.pairs import fitting, read
from dpo_data.trainer.reporter import reporter


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
    adapts = settings["method"] == "lora"
    tokenizer = AutoTokenizer.from_pretrained(job["model"], revision=job["revision"])
    if not tokenizer.chat_template:
        raise TrainError(f"{job['model']} has no chat template, so its prompts have no form", "Use an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def weights() -> Any:
        dtype = torch.bfloat16 if bf16 and adapts else torch.float32
        return AutoModelForCausalLM.from_pretrained(job["model"], revision=job["revision"], dtype=dtype)

    model = weights()
    limit = settings["max_length"] or getattr(model.config, "max_position_embeddings", None)
    pairs, longest, too_long = fitting(read(job["train"]), tokenizer, limit)
    test, _, _ = fitting(read(job["test"]), tokenizer, limit)
    if not len(pairs):
        raise TrainError(
            f"No pair fits into max_length {limit} tokens; the shortest needs {longest}", "Raise train.max_length."
        )
    trainer = DPOTrainer(
        model=model,
        ref_model=None if adapts else weights(),  # with LoRA the reference is the model with its adapter off
        args=arguments(job, bf16, cuda, len(pairs)),
        train_dataset=pairs,
        eval_dataset=test if len(test) else None,
        processing_class=tokenizer,
        peft_config=lora(settings["lora"]) if adapts else None,
        callbacks=[reporter(parent)],
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


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its state file comes last, and parses."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return checkpoint
    return None
