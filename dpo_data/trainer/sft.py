"""Supervised fine-tuning before the preferences: the loss on the answers alone, and whole weights to go on from."""

import json
import shutil
from pathlib import Path
from typing import Any

from dpo_data.child import Parent
from dpo_data.errors import TrainError
from dpo_data.files import read_rows
from dpo_data.rows import Sample
from dpo_data.trainer.arguments import sft_arguments
from dpo_data.trainer.checkpoints import last_checkpoint
from dpo_data.trainer.reporter import reporter
from dpo_data.trainer.tokens import continued, render
from dpo_data.trainer.weights import load, merged, new_adapter

FOLDER = "sft"
"""Where the tuned weights are, in the stage's folder."""
FACTS = "sft.json"
"""The file beside them that tells how they came about."""


def fine_tune(job: dict[str, Any], pairs: Any, limit: int | None, tokenizer: Any, bf16: bool, parent: Parent) -> dict[str, Any]:
    """Tune the job's policy on its demonstrations, or on the chosen answers of the pairs. Returns how many `rows` were trained
    on, how many were `too_long`, how many prompts `unanswered`, the `steps`, and the `history` of the loss. What is there whole
    is not done again. Raises TrainError where nothing fits."""
    tuned, partial = Path(job["folder"]) / FOLDER, Path(job["folder"]) / ".sft.tmp"
    if (tuned / FACTS).exists():
        return json.loads((tuned / FACTS).read_text())  # type: ignore[no-any-return]
    given = job["demonstrations"]
    rows, counts = of_samples(given, tokenizer, limit) if given else (of_pairs(pairs), {"too_long": 0, "unanswered": 0})
    if not len(rows):
        raise TrainError(
            f"None of {counts['too_long']} answers to fine-tune on fits into max_length {limit}", "Raise train.max_length."
        )
    trainer = _trained(job, rows, tokenizer, bf16, parent)
    state = trainer.state
    facts = {"rows": len(rows), **counts, "steps": state.global_step, "history": state.log_history}
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        if job["settings"]["method"] != "full":
            _merge(job, partial, bf16)
        tokenizer.save_pretrained(str(partial))
        (partial / FACTS).write_text(json.dumps(facts, indent=1))
        shutil.rmtree(tuned, ignore_errors=True)  # of which an object store may hold a part
        partial.rename(tuned)
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return facts


def from_tuned(job: dict[str, Any]) -> dict[str, Any]:
    """The job as it goes on after `fine_tune`: its policy, and the reference, are the tuned weights."""
    return {**job, "model": str(Path(job["folder"]) / FOLDER), "revision": None, "adapter": None}


def sft_facts(job: dict[str, Any], tuned: dict[str, Any]) -> dict[str, Any]:
    """What the manifest tells of it. `base`: the folder, in the stage's, of the weights that an adapter is for."""
    counts = {name: value for name, value in tuned.items() if name != "history"}
    return {"sft": counts, "base": None if job["settings"]["method"] == "full" else FOLDER}


def sft_history(tuned: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What was logged, its figures named `sft/…`, to stand before those of the preferences."""
    entries = tuned["history"] if tuned else []
    return [{name if name in ("step", "epoch") else f"sft/{name}": value for name, value in one.items()} for one in entries]


def of_pairs(pairs: Any) -> Any:
    """Each chosen answer of the pairs, as `tokenize` gives them, once: rows for SFTTrainer."""
    seen: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in pairs:
        seen.setdefault((row["prompt_id"], row["chosen_id"]), _row(row["prompt_ids"], row["chosen_ids"]))
    return _dataset(list(seen.values()))


def of_samples(path: str, tokenizer: Any, limit: int | None) -> tuple[Any, dict[str, int]]:
    """Each answer of a file of samples as the chat template renders it, as rows for SFTTrainer; and what is left out: how many
    answers are `too_long`, more than `limit` tokens with their prompt, and how many prompts are `unanswered`."""
    rows, unanswered = [], 0
    for sample in read_rows(Path(path), Sample):
        unanswered += not sample.completions
        asked = render(sample, [], tokenizer)
        for completion in sample.completions:
            turn = {"role": "assistant", "content": completion.text}
            calls = {"tool_calls": completion.tool_calls} if completion.tool_calls else {}
            rows.append(_row(asked, continued(sample, [{**turn, **calls}], asked, tokenizer)))
    fit = [row for row in rows if limit is None or len(row["input_ids"]) <= limit]
    return _dataset(fit), {"too_long": len(rows) - len(fit), "unanswered": unanswered}


def _trained(job: dict[str, Any], rows: Any, tokenizer: Any, bf16: bool, parent: Parent) -> Any:
    """TRL's SFTTrainer when it has come to its end, from the last checkpoint if there is one."""
    import torch
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=load(job, bf16),
        args=sft_arguments(job, bf16, torch.cuda.is_available(), len(rows)),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=new_adapter(job),
        callbacks=[reporter(parent, "sft")],
    )
    checkpoint = last_checkpoint(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def _row(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """Labels of -100 are no part of the loss."""
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def _dataset(rows: list[dict[str, list[int]]]) -> Any:
    import pyarrow as pa
    from datasets import Dataset

    ids = pa.list_(pa.int32())
    return Dataset(pa.Table.from_pylist(rows, schema=pa.schema([("input_ids", ids), ("labels", ids)])))


def _merge(job: dict[str, Any], folder: Path, bf16: bool) -> None:
    """Put whole weights in the place of the adapter in a folder: into the base as it is before it is quantized."""
    adapter = folder.with_name(".sft-adapter.tmp")
    shutil.rmtree(adapter, ignore_errors=True)
    folder.rename(adapter)
    base = load({**job, "adapter": None, "settings": {**job["settings"], "method": "lora"}}, bf16)
    merged(base, str(adapter)).save_pretrained(str(folder))
    shutil.rmtree(adapter)
