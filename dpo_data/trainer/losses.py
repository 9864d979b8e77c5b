"""The losses by name, and the trainer of TRL's that has each: DPOTrainer, or one of its own for ORPO and SimPO."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpo_data.errors import TrainError

REFERENCE_FREE = ("orpo", "simpo")
"""Losses that compare with no reference model. TRL has each in a trainer of its own, which it calls experimental."""

GIVEN: dict[str, dict[str, Any]] = {
    "robust": {"label_smoothing": 0.1},  # the share of labels taken to be wrong; at TRL's 0 it is plain DPO (arXiv 2403.00409)
    "exo_pair": {"label_smoothing": 1e-3},  # TRL refuses its own default, 0 (arXiv 2402.00856)
    "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0},  # at TRL's 1 it is CPO and SimPO in one (arXiv 2405.14734)
}
"""What a loss needs set beside its name. `train.args` has the last word."""


def names(loss: str | list[str]) -> list[str]:
    """The parts of a loss: of `sigmoid+sft`, both. Raises TrainError where one that stands alone is combined."""
    parts = loss.split("+") if isinstance(loss, str) else loss
    alone = [part for part in parts if part in REFERENCE_FREE]
    if not parts or (alone and len(parts) > 1):
        raise TrainError(f"'train.loss' is {loss!r}", f"Name one or more losses; {' and '.join(REFERENCE_FREE)} stand alone.")
    return parts


def reference_free(loss: str | list[str]) -> bool:
    """Whether the loss needs no reference log-probs."""
    return names(loss)[0] in REFERENCE_FREE


def loss_arguments(loss: str | list[str]) -> dict[str, Any]:
    """The loss as arguments of its configuration: every part has weight 1, unless `train.args` says otherwise."""
    parts = names(loss)
    given = {name: value for part in parts for name, value in GIVEN.get(part, {}).items()}
    return given if reference_free(loss) else {"loss_type": parts, **given}


def config_class(loss: str | list[str]) -> Any:
    """TRL's configuration for the loss. Raises TrainError where the installed TRL has no trainer for it."""
    return _trl(names(loss)[0])[1]


def trainer_class(loss: str | list[str]) -> Any:
    """TRL's trainer for a loss without a reference, for pairs that are token ids already: `prompt_ids`, `chosen_ids` and
    `rejected_ids`. It would render and tokenise by itself, end what has no end token, and cut at `max_length`."""

    class Trainer(_trl(names(loss)[0])[0]):  # type: ignore[misc]
        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, list[int]]:
            return _row(feature)

    return Trainer


def _trl(name: str) -> tuple[Any, Any]:
    """The trainer and its configuration."""
    import trl

    try:
        match name:
            case "orpo":
                from trl.experimental.orpo import ORPOConfig, ORPOTrainer

                return ORPOTrainer, ORPOConfig
            case "simpo":
                from trl.experimental.cpo import CPOConfig, CPOTrainer

                return CPOTrainer, CPOConfig
    except ImportError:
        raise TrainError(
            f"TRL {trl.__version__} has no trainer for the loss {name!r}",
            'Install TRL 1.16, or set train.loss = "sigmoid_norm", which is normalised by length as well.',
        ) from None
    return trl.DPOTrainer, trl.DPOConfig


def _row(pair: dict[str, Any]) -> dict[str, list[int]]:
    """A pair as these trainers' collator takes it. Labels of -100 are no part of the loss."""
    prompt = pair["prompt_ids"]
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        answer = pair[f"{side}_ids"]
        row |= {
            f"{side}_input_ids": prompt + answer,
            f"{side}_attention_mask": [1] * (len(prompt) + len(answer)),
            f"{side}_labels": [-100] * len(prompt) + answer,
        }
    return row


@contextmanager
def refusals() -> Iterator[None]:
    """Raises TrainError where TRL does not know the loss, with the list that it gives: it looks at its first step."""
    try:
        yield
    except ValueError as error:
        if "Unknown loss type" not in str(error):
            raise
        raise TrainError(f"TRL refuses the loss: {error}", "Mend train.loss.") from None


@contextmanager
def combined() -> Iterator[None]:
    """Raises TrainError where TRL, when a trainer is made and before anything is computed, refuses arguments that do not go
    together. What is raised elsewhere, in our code above all, is no refusal and stays what it is."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        if not _raised_in(error, "trl", "transformers", "accelerate", "peft"):
            raise
        raise TrainError(f"TRL refuses the training arguments: {error}", "Mend [train.args].") from error


def _raised_in(error: Exception, *packages: str) -> bool:
    (*_, (frame, _)) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].partition(".")[0] in packages
