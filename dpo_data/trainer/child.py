"""The child's side of training: TRL's trainers, with every surprising default set on purpose."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from dpo_data.child import Parent
from dpo_data.errors import TrainError
from dpo_data.rows import content_id
from dpo_data.trainer import reference, scoring
from dpo_data.trainer.arguments import arguments
from dpo_data.trainer.checkpoints import last_checkpoint, step_of
from dpo_data.trainer.dpo import ahead, dpo_trainer
from dpo_data.trainer.launch import launch
from dpo_data.trainer.losses import combined, reference_free, refusals, trainer_class
from dpo_data.trainer.reporter import reporter
from dpo_data.trainer.sft import fine_tune, from_tuned, sft_facts, sft_history
from dpo_data.trainer.tokens import fitting, read_answers, read_pairs, tokenize
from dpo_data.trainer.watch import oversee, settle
from dpo_data.trainer.weights import load, new_adapter


class Pairs(NamedTuple):
    """The pairs to train on and those held out, as `tokenize` gives them; how many tokens a pair may have; and counts."""

    train: Any
    test: Any
    limit: int | None
    facts: dict[str, Any]


def work(parent: Parent) -> None:
    """Do the one job that the parent sends, and tell it of every step and of the end."""
    job = parent.receive()
    if job["settings"]["processes"] > 1:
        launch(job, parent)
    else:
        do(job, parent)
    parent.receive()  # the parent closes when it has read the last word


def do(job: dict[str, Any], parent: Parent) -> None:
    """Train in this process, alone or as one of several."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    try:
        parent.send({"done": _train(job, parent)})
    except TrainError as error:
        parent.send({"failed": error.what, "remedy": error.remedy})


def _train(job: dict[str, Any], parent: Parent) -> dict[str, Any]:
    import torch
    from transformers import set_seed

    folder, cuda = Path(job["folder"]), torch.cuda.is_available()
    bf16 = _bf16(job["settings"]["precision"])
    tokenizer = chat_tokenizer(job)
    pairs = prepare(job, tokenizer)
    tuned = fine_tune(job, pairs.train, pairs.limit, tokenizer, bf16, parent) if job["settings"]["sft"] else None
    if tuned:
        job = from_tuned(job)
    trainer, facts = make_trainer(job, pairs, tokenizer, bf16, [reporter(parent)])
    watch = oversee(trainer, job, parent)
    checkpoint = last_checkpoint(Path(trainer.args.output_dir))
    set_seed(job["seed"])  # what came before took random numbers, more of them or fewer
    with refusals():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    kept = settle(trainer, watch, job["settings"]["early_stop"])
    _save(trainer, tokenizer, folder)
    return {
        **pairs.facts,
        **facts,
        "precision": "bf16" if bf16 else "fp32",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "steps": trainer.state.global_step,
        "resumed_at": step_of(checkpoint) if checkpoint else 0,
        **kept,
        **(sft_facts(job, tuned) if tuned else {}),
        "history": [*sft_history(tuned), *trainer.state.log_history],
    }


def chat_tokenizer(job: dict[str, Any]) -> Any:
    """The policy's tokenizer, with the chat template that the recipe names, if any. Raises TrainError where there is none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"], revision=job["revision"])
    if job["chat_template"]:
        tokenizer.chat_template = job["chat_template"]
    if not tokenizer.chat_template:
        raise TrainError(
            f"{job['model']} has no chat template, so its prompts have no form", "Use an instruct model, or name a template."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prepare(job: dict[str, Any], tokenizer: Any) -> Pairs:
    """The job's pairs as token ids. Raises TrainError where none fits."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job["model"], revision=job["revision"])
    limit = job["settings"]["max_length"] or getattr(config, "max_position_embeddings", None)
    rows = {split: read_pairs(job[split]) for split in ("train", "test")}
    answers = read_answers(job["samples"], [pair for split in rows.values() for pair in split])
    ends = _ends(job, tokenizer)
    train, longest, too_long = fitting(tokenize(rows["train"], answers, tokenizer, ends), limit)
    test, _, test_too_long = fitting(tokenize(rows["test"], answers, tokenizer, ends), limit)
    if not len(train):
        raise TrainError(
            f"No pair fits into max_length {limit} tokens; the shortest needs {longest}", "Raise train.max_length."
        )
    both = [pairs[f"sampled_{side}"][:] for pairs in (train, test) for side in ("chosen", "rejected")]
    sampled, total = sum(map(sum, both)), sum(map(len, both))
    facts = {"pairs": len(train), "too_long": too_long, "test_too_long": test_too_long, "max_length": longest}
    counts = {"as_sampled": sampled, "rendered": total - sampled}
    return Pairs(train, test if len(test) else None, limit, {**facts, "answers": counts})


def make_trainer(
    job: dict[str, Any], pairs: Pairs, tokenizer: Any, bf16: bool, callbacks: list[Any]
) -> tuple[Any, dict[str, Any]]:
    """The trainer of the recipe's loss, ready for its first step; and what of it is told in the manifest."""
    import torch

    settings, precision = job["settings"], "bf16" if bf16 else "fp32"
    args = arguments(job, bf16, torch.cuda.is_available(), len(pairs.train), len(pairs.test or ()))
    given = {
        "model": load(job, bf16),
        "args": args,
        "train_dataset": pairs.train,
        "eval_dataset": pairs.test,
        "processing_class": tokenizer,
        "peft_config": new_adapter(job),
        "callbacks": callbacks,
    }
    if reference_free(settings["loss"]):
        with combined():
            return trainer_class(settings["loss"])(**given), {}
    scoring.score_answers_alone()
    why = ahead(args)
    args.precompute_ref_log_probs = why is None
    own = why is not None and settings["method"] == "full"  # else it is the policy itself, without its adapter
    reference_model = load(job, bf16) if own else None
    with combined():
        trainer = dpo_trainer(**given, ref_model=reference_model)
    alone = scoring.share_prompts(trainer, precision) if settings["share_prompt"] else "train.share_prompt is off"
    facts: dict[str, Any] = {"shared_prompts": {"on": alone is None, "why_off": alone}}
    if why is None:
        unfit = reference.why_not_sampled(job, precision, content_id(tokenizer.chat_template))
        facts["reference"] = reference.attach(trainer, Path(job["folder"]) / "reference.parquet", precision, unfit)
    return trainer, facts


def _bf16(precision: str) -> bool:
    import torch

    return precision == "bf16" or (precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _ends(job: dict[str, Any], tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those by which the model stops when it generates."""
    from transformers import GenerationConfig

    try:
        told = GenerationConfig.from_pretrained(job["model"], revision=job["revision"]).eos_token_id
    except OSError:  # it has no such file
        told = None
    more = told if isinstance(told, list) else [told]
    return {one for one in (tokenizer.eos_token_id, *more) if one is not None}


def _save(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Write `model`, which appears whole."""
    partial = folder / ".model.tmp"
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(str(partial))
        shutil.rmtree(folder / "model", ignore_errors=True)
        partial.rename(folder / "model")
    trainer.accelerator.wait_for_everyone()
