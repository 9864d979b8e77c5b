"""DPO, ours against TRL's DPOTrainer as it comes: the same pairs, weights and hyper-parameters, in one process, by turns.

    python benchmarks/train.py [PASSES]

A Llama of 42M random parameters with a vocabulary of 32,000, in fp32; 16 pairs of token ids, 4 a step. A prompt has 128 tokens,
an answer too (medians of log-normals, σ 0.6, up to 768 tokens). What ours does is added rung by rung; a pass goes over all
pairs once, optimizer included, and every rung has one in turn. Told are medians. Peak memory is measured apart, a process each.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

PASSES = 3
SPREAD = 0.6
RUNGS = ("TRL as it comes", "+ reference known", "+ logits at answers alone", "+ batches by length", "+ prompts shared")


@dataclass(frozen=True)
class Setting:
    """What is trained, and how. `sizes` are a LlamaConfig's; `length` is the median of tokens of a prompt, and of an answer."""

    sizes: dict[str, int]
    length: int = 128
    pairs: int = 16
    batch_size: int = 4
    method: str = "lora"
    device: str = "cpu"
    bf16: bool = False


LLAMA = {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
SETTING = Setting(LLAMA)


def main(passes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        for method in ("lora", "full"):
            setting, folder = replace(SETTING, method=method), Path(name) / method
            folder.mkdir()
            make_model(setting, folder)
            ladder(setting, folder, passes)
            peaks = [_peak(setting, folder, rung) for rung in (0, len(RUNGS) - 1)]
            print(
                f"{method:5} peak memory: TRL {peaks[0]:.0f} MiB, ours {peaks[1]:.0f} MiB, {peaks[1] / peaks[0]:.2f} ×",
                flush=True,
            )


def ladder(setting: Setting, folder: Path, passes: int) -> None:
    """Print what each rung does in a second, and how that compares with TRL."""
    sides = [make_side(rung, setting, folder) for rung in range(len(RUNGS))]
    for side in sides:
        side.steps(2)  # what is only done once
    told: list[list[tuple[float, float]]] = [[] for _ in sides]
    for _ in range(passes):
        for seconds, side in zip(told, sides, strict=True):
            seconds.append(side.steps())
    steps = setting.pairs // setting.batch_size
    for name, seconds in zip(RUNGS, told, strict=True):
        wall, cpu = ([one[at] for one in seconds] for at in (0, 1))
        ratios = [[first[at] / one[at] for first, one in zip(told[0], seconds, strict=True)] for at in (0, 1)]
        print(
            f"{setting.method:5} {name:26} {steps / median(wall):7.3f} steps/s, {median(cpu) / steps:6.2f} CPU-s a step; "
            f"{median(ratios[0]):.2f} × TRL ({', '.join(f'{one:.2f}' for one in ratios[0])}), {median(ratios[1]):.2f} × by CPU",
            flush=True,
        )


def make_model(setting: Setting, folder: Path) -> None:
    """Write a model and a tokenizer that training can load. The tokenizer only lends its padding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dpo_data.demo.model import build_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(**setting.sizes, tie_word_embeddings=True, max_position_embeddings=4096)
    LlamaForCausalLM(config).save_pretrained(folder)
    build_tokenizer(["a b c"]).save_pretrained(folder)


def make_pairs(setting: Setting) -> Any:
    """Pairs of random tokens, as `tokenize` gives them."""
    from datasets import Dataset

    dice = random.Random(0)

    def tokens() -> list[int]:
        length = int(min(6, dice.lognormvariate(0, SPREAD)) * setting.length) + 1
        return [dice.randrange(10, setting.sizes["vocab_size"]) for _ in range(length)]

    rows = []
    for at in range(setting.pairs):
        row: dict[str, Any] = {name: tokens() for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        longer = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        row |= {
            "prompt_id": f"p{at}",
            "chosen_id": f"c{at}",
            "rejected_id": f"r{at}",
            "length": len(row["prompt_ids"]) + longer,
        }
        rows.append(row | {f"{what}_{side}": None for what in ("sampled", "logprob") for side in ("chosen", "rejected")})
    return Dataset.from_list(rows)


class Side:
    """One rung's trainer, with its batches and what TRL was told about them."""

    def __init__(self, trainer: Any, alone: bool, device: str):
        import torch

        self._trainer, self._alone, self._device = trainer, alone, device
        trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
        self._batches = trainer.get_train_dataloader()
        trained = [value for value in trainer.model.parameters() if value.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def steps(self, most: int | None = None) -> tuple[float, float]:
        """Train on every batch once, or on the first ones. Returns seconds by the clock and of CPU."""
        with _scoring(self._alone):
            began, cpu = time.perf_counter(), time.process_time()
            for at, batch in enumerate(self._batches):
                if at == most:
                    break
                self._trainer.training_step(self._trainer.model, batch)
                self._optimizer.step()
                self._optimizer.zero_grad()
            _wait(self._device)
            return time.perf_counter() - began, time.process_time() - cpu


def make_side(rung: int, setting: Setting, folder: Path) -> Side:
    """The trainer of a rung, made of the parts that training itself is made of."""
    from dpo_data.trainer.arguments import arguments
    from dpo_data.trainer.dpo import dpo_trainer
    from dpo_data.trainer.reference import attach
    from dpo_data.trainer.scoring import share_prompts
    from dpo_data.trainer.weights import load, new_adapter

    job = _job(setting, folder, rung)
    args = arguments(job, setting.bf16, setting.device == "cuda", setting.pairs)
    args.precompute_ref_log_probs = rung >= 1
    own = rung == 0 and setting.method == "full"
    trainer = dpo_trainer(
        model=load(job, setting.bf16),
        ref_model=load(job, setting.bf16) if own else None,
        args=args,
        train_dataset=make_pairs(setting),
        processing_class=_tokenizer(folder),
        peft_config=new_adapter(job),
    )
    precision = "bf16" if setting.bf16 else "fp32"
    with _scoring(alone=True):
        if rung == 4 and (why := share_prompts(trainer, precision)):
            raise SystemExit(f"prompts are not shared: {why}")
        if rung >= 1:
            attach(trainer, folder / "reference.parquet", precision, "this benchmark samples nothing")
    return Side(trainer, rung >= 2, setting.device)


def _job(setting: Setting, folder: Path, rung: int) -> dict[str, Any]:
    from dpo_data.config import Train

    order = {} if rung >= 3 else {"train_sampling_strategy": "random"}
    table = Train(method=setting.method, batch_size=setting.batch_size, save_steps=10_000, args=order)  # type: ignore[arg-type]
    places = {"model": str(folder), "revision": None, "adapter": None, "folder": str(folder), "chat_template": None}
    gates = {"max_chosen_drop": None, "max_kl": None}
    return {**places, "seed": 0, "gates": gates, "settings": table.model_dump(mode="json")}


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@contextmanager
def _scoring(alone: bool) -> Iterator[None]:
    """Whether TRL computes logits at answers alone, or as it comes."""
    from trl.trainer import utils

    from dpo_data.trainer.scoring import score_answers_alone

    before = utils._use_triton
    if alone:
        score_answers_alone()
    yield
    utils._use_triton = before


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _peak(setting: Setting, folder: Path, rung: int) -> float:
    """MiB that a process takes at most that trains on the longest pairs by that rung alone. The reference is known already."""
    told = [sys.executable, __file__, "--peak", json.dumps([setting.method, str(folder), rung])]
    return float(subprocess.run(told, check=True, capture_output=True, text=True).stdout.split()[-1])


def _tell_peak(method: str, folder: str, rung: int) -> None:
    side = make_side(rung, replace(SETTING, method=method), Path(folder))
    side.steps()
    # Not ru_maxrss, which begins with what the parent had.
    told = Path("/proc/self/status").read_text()
    print(int(next(line.split()[1] for line in told.splitlines() if line.startswith("VmHWM:"))) / 1024)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        _tell_peak(*json.loads(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else PASSES)
