"""The table `[train]`, and those in it."""

from typing import Any, Literal

from pydantic import Field, model_validator

from dpo_data.errors import RecipeError
from dpo_data.seams import Settings


class Lora(Settings):
    """A LoRA adapter, by peft's own names. On all linear layers, as QLoRA found that quality needs (arXiv 2305.14314, section
    4); of the rank of Zephyr's (alignment-handbook, `zephyr-7b-beta/dpo/config_qlora.yaml`), at twice its scale."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


class Sft(Settings):
    """Supervised fine-tuning before the preferences, by TRL: preference training presumes a model that can already answer.

    On the chosen answers of the pairs, or on `path`, a file of prompts with answers, read as `[prompts] path` is; of several
    scored answers to a prompt the best is taken. The loss is on the answer alone. By the same method as `[train]`, and merged
    into whole weights, from which the preferences then start. `learning_rate`: without it, Zephyr's 2e-5 for all weights and
    2e-4 for an adapter (alignment-handbook, `zephyr-7b-beta/sft`). What is not named here goes into `args`, TRL's own
    SFTConfig.
    """

    path: str | None = None
    learning_rate: float | None = Field(None, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    args: dict[str, Any] = {}


class Train(Settings):
    """Preference training by TRL. What is not named here goes into `args`, TRL's own configuration of the trainer.

    `model` is what is trained; without it, the model that sampled. `chat_template`: a file of one's own; without it, the
    engine's. `loss`: any of DPOConfig's `loss_type`, a list of them, or several joined by `+`: `sigmoid+sft` adds the
    likelihood of the chosen answers at the same weight (RPO, arXiv 2404.19733, α = 1); `orpo` and `simpo` have trainers of
    their own in TRL, and no reference. `method`: a LoRA adapter, one on weights in 4 bits (qlora), or all weights. `precision`:
    `auto` is bf16 on a GPU and fp32 on a CPU. `max_length`, in tokens of prompt and answer together: without it, what the model
    can take; a longer pair is left out and counted, never cut. `share_prompt`: run a prompt once for its two answers, where
    the model's log-probs and gradients stay the same. `early_stop`: after how many evaluations without a lower loss on the
    held-out pairs training ends and keeps the best checkpoint; 0 never. `batch_size`: the pairs of a step, over all
    `processes`, which `accelerate launch` starts with the arguments `launch`. `report_to`: TRL's trackers, one or a list.

    Where the defaults come from: `beta` from DPO (arXiv 2305.18290, appendix B), and ORPO's weight is the same (arXiv
    2403.07691); SimPO wants 2 to 10 (its repository, princeton-nlp/SimPO). `learning_rate`, one epoch, and a cosine after a
    tenth of warm-up from Zephyr's adapter (alignment-handbook, `zephyr-7b-beta/dpo/config_qlora.yaml`), for 7B parameters;
    smaller models want more.
    """

    incidental = frozenset({"save_steps", "report_to"})
    model: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    loss: str | list[str] = "sigmoid"
    method: Literal["lora", "qlora", "full"] = "lora"
    beta: float = Field(0.1, gt=0)
    learning_rate: float = Field(5e-6, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=8)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    share_prompt: bool = True
    save_steps: int = Field(50, ge=1)
    early_stop: int = Field(0, ge=0)
    processes: int = Field(1, ge=1)
    launch: list[str] = ["--multi_gpu"]
    report_to: str | list[str] = "none"
    lora: Lora = Lora()
    sft: Sft | None = None
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _stays_on_this_machine(self) -> "Train":
        for name, args in (("train.args", self.args), ("train.sft.args", self.sft.args if self.sft else {})):
            if places := args.keys() & {"output_dir", "logging_dir"}:
                raise RecipeError(
                    f"'{name}.{min(places)}' says where training writes, which is its own folder in the run directory",
                    "Leave it out.",
                )
            if args.get("push_to_hub"):
                raise RecipeError(
                    f"'{name}.push_to_hub' would publish the model before any gate, and without [publish]",
                    "Leave it out, and set publish.model_repo_id.",
                )
        return self

    @model_validator(mode="after")
    def _divides(self) -> "Train":
        for name, size in (("train.batch_size", self.batch_size), ("train.sft.batch_size", self.sft and self.sft.batch_size)):
            if size and size % self.processes:
                raise RecipeError(
                    f"'{name}' is {size}, which {self.processes} processes cannot share evenly",
                    f"Make it a multiple of {self.processes}.",
                )
        return self
