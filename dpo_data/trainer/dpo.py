"""TRL's DPOTrainer, for pairs that are token ids already, with reference log-probs that are known before the first step."""

from typing import Any

from dpo_data.trainer.batches import by_length


def ahead(args: Any) -> str | None:
    """Whether the reference's log-probs can be known before training: None, or what forbids it. TRL then computes them beside
    each step, as it comes."""
    if args.sync_ref_model:
        return "sync_ref_model changes the reference while it trains"
    if args.ld_alpha is not None:
        return "ld_alpha weighs each answer by the length of the other"
    if args.f_divergence_type != "reverse_kl":
        return f"f_divergence_type is {args.f_divergence_type!r}"
    if str(args.distributed_state.distributed_type).split(".")[-1] in ("DEEPSPEED", "FSDP"):
        return "its weights are spread over processes"
    return None


def dpo_trainer(**given: Any) -> Any:
    """A DPOTrainer of these arguments. Its datasets are those of `tokens.tokenize`: it renders and tokenises nothing. What
    `args.precompute_ref_log_probs` asks for is left to `reference.attach`, since TRL's own cache keeps log-probs that no longer
    hold, and computes those anew that are there."""
    from trl import DPOTrainer

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if self.args.train_sampling_strategy != "group_by_length":
                return super()._get_train_sampler(train_dataset)
            together = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return by_length(self.train_dataset["length"][:], together, self.args.data_seed or self.args.seed)

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            """TRL's; logged with it are the mean tokens of an answer, without which its log-probabilities tell little."""
            logged = self._metrics["train" if self.model.training else "eval"]
            answers = inputs["completion_mask"][:, 1:].sum(dim=1).float().chunk(2)
            for side, tokens in zip(("chosen", "rejected"), answers, strict=True):
                logged[f"tokens/{side}"].append(self.accelerator.gather(tokens).mean().item())
            return super().compute_loss(model, inputs, *rest, **named)

    return Trainer(**given)
