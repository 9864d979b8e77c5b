"""The table `[train]`, and those in it."""

from typing import Any, Literal

from pydantic import Field

from dpo_data.seams import Settings


class Lora(Settings):
    """A LoRA adapter, by peft's own names."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


class Train(Settings):
    """DPO by TRL. What is not named here goes into `args`, TRL's own DPOConfig.

    `model` is what is trained; without it, the model that sampled. `method`: a LoRA adapter, or all weights. `precision`:
    `auto` is bf16 on a GPU and fp32 on a CPU. `max_length`, in tokens of prompt and answer together: without it, what the model
    can take; a longer pair is left out and counted, never cut.
    """

    incidental = frozenset({"save_steps"})
    model: str | None = None
    revision: str | None = None
    method: Literal["lora", "full"] = "lora"
    beta: float = Field(0.1, gt=0)
    learning_rate: float = Field(5e-6, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=8)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    save_steps: int = Field(50, ge=1)
    lora: Lora = Lora()
    args: dict[str, Any] = {}
