"""Each loss against its formula, written by hand in float64; and where the weights come from that are trained."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_data.config import Train
from dpo_data.errors import TrainError
from dpo_data.trainer import losses

BETA = 0.3
LOSSES = ["sigmoid", "ipo", "robust", "apo_zero", "sigmoid_norm", "sigmoid+sft", "orpo", "simpo"]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def of_a_pair(loss: str, chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, c: int, r: int) -> float:
    """The loss of one pair, by the sums of its answers' log-probs and their tokens. Sources: DPO, arXiv 2305.18290, eq. 7; IPO,
    2310.12036, eq. 17, by token; robust DPO, 2403.00409; APO-zero, 2408.06266, eq. 7; SimPO, 2405.14734, eq. 6; ORPO's odds
    ratio, 2403.07691, eq. 4 and 7."""
    won, lost = chosen - ref_chosen, rejected - ref_rejected
    match loss:
        case "sigmoid" | "sigmoid+sft":
            return -log_sigmoid(BETA * (won - lost))
        case "ipo":
            return (won / c - lost / r - 1 / (2 * BETA)) ** 2
        case "robust":
            wrong, margin = 0.1, BETA * (won - lost)
            return (wrong * log_sigmoid(-margin) - (1 - wrong) * log_sigmoid(margin)) / (1 - 2 * wrong)
        case "apo_zero":
            return 1 - sigmoid(BETA * won) + sigmoid(BETA * lost)
        case "sigmoid_norm":
            return -log_sigmoid(BETA * (won / c - lost / r))
        case "simpo":
            return -log_sigmoid(BETA * (chosen / c - rejected / r) - 0.5)
        case "orpo":
            log_odds = [mean - math.log1p(-math.exp(mean)) for mean in (chosen / c, rejected / r)]
            return -BETA * log_sigmoid(log_odds[0] - log_odds[1])
    raise AssertionError(loss)


Tokens = tuple[list[int], list[int], list[int]]


def pairs(tokenizer: Any) -> list[Tokens]:
    """Prompt, chosen and rejected, each of another length; the last answer is longer than TRL would leave it."""
    said = [("What is 1?", "One", "It is the number one"), ("Red?", "A colour of the sky", "No")]
    said.append(("Long?", "Yes " * 30, "word " * 1100))
    ids = [[tokenizer.encode(text, add_special_tokens=False) for text in row] for row in said]
    return [(prompt, [*chosen, tokenizer.eos_token_id], rejected) for prompt, chosen, rejected in ids]


def log_probs(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """Of each token but the first, without padding, by a plain log-softmax."""
    import torch

    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        scores = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
    return [float(row[token]) for row, token in zip(scores, ids[0, 1:], strict=True)]


Scored = list[list[tuple[list[int], list[int], list[float]]]]
"""Of each pair, for chosen and rejected: the prompt, the answer, and the log-probs of all tokens but the first."""


def scored(model: Any, rows: list[Tokens]) -> Scored:
    return [
        [(prompt, side, log_probs(model, prompt, side)) for side in (chosen, rejected)] for prompt, chosen, rejected in rows
    ]


def answer(prompt: list[int], side: list[int], found: list[float]) -> list[float]:
    return found[len(prompt) - 1 :]


def expected(loss: str, policy: Scored, reference: Scored) -> float:
    """The mean over the pairs; and what ORPO, over prompt and answer as TRL has it, or `+sft` adds: the mean over all tokens of
    the chosen."""
    total, likelihoods = 0.0, []
    for ours, theirs in zip(policy, reference, strict=True):
        sums = [sum(answer(*side)) for side in (*ours, *theirs)]
        total += of_a_pair(loss, *sums, *(len(side) for _, side, _ in ours)) / len(policy)
        likelihoods += ours[0][2] if loss == "orpo" else answer(*ours[0])
    return total - sum(likelihoods) / len(likelihoods) if loss in ("orpo", "sigmoid+sft") else total


def dataset(rows: list[Tokens]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                **{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r, "length": len(p) + max(len(c), len(r))},
                **{"prompt_id": str(at), "chosen_id": f"c{at}", "rejected_id": f"r{at}"},
            }
            for at, (p, c, r) in enumerate(rows)
        ]
    )


def job(folder: Path, model: str, **settings: Any) -> dict[str, Any]:
    """A job such as the child is given, for what reads the model, the folder and the settings of it."""
    given = Train(**{"beta": BETA, "batch_size": 3, **settings}).model_dump(mode="json")
    nothing = {"early_stop": 0, "gates": {}, "adapter": None, "revision": None, "seed": 0}
    return {**nothing, "folder": str(folder), "model": model, "settings": given}


@pytest.fixture(scope="module")
def models(tiny_model: str) -> tuple[Any, Any, Any, list[Tokens], Scored, Scored]:
    """A policy and a reference that differ, in float64, their tokenizer, some pairs, and these as both models score them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    policy, reference = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval() for _ in range(2))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = pairs(tokenizer)
    return policy, reference, tokenizer, rows, scored(policy, rows), scored(reference, rows)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_what_its_paper_says(loss: str, models: Any, tmp_path: Path) -> None:
    """TRL computes it; by hand is checked that the recipe's name reaches the right formula, with the right weights, of all of
    the tokens and no others."""
    from dpo_data.trainer.arguments import arguments
    from dpo_data.trainer.dpo import dpo_trainer

    policy, reference, tokenizer, rows, by_policy, by_reference = models
    args = arguments(job(tmp_path, "tiny", loss=loss), False, False, len(rows), 0)
    given = {"model": policy, "args": args, "train_dataset": dataset(rows), "processing_class": tokenizer}
    alone = losses.reference_free(loss)
    trainer = losses.trainer_class(loss)(**given) if alone else dpo_trainer(**given, ref_model=reference)
    found = float(trainer.compute_loss(policy, next(iter(trainer.get_train_dataloader()))).detach())
    assert found == pytest.approx(expected(loss, by_policy, by_reference), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "given"),
    [
        ("sigmoid", {"loss_type": ["sigmoid"]}),
        (["sigmoid", "bco_pair", "sft"], {"loss_type": ["sigmoid", "bco_pair", "sft"]}),
        ("ipo+sft", {"loss_type": ["ipo", "sft"]}),
        ("robust", {"loss_type": ["robust"], "label_smoothing": 0.1}),
        ("something_of_tomorrow", {"loss_type": ["something_of_tomorrow"]}),
        ("simpo", {"loss_type": "simpo", "cpo_alpha": 0.0}),
        ("orpo", {}),
    ],
)
def test_names_pass_through(loss: Any, given: dict[str, Any]) -> None:
    assert losses.loss_arguments(loss) == given
    assert losses.reference_free(loss) == (loss in ("orpo", "simpo"))


@pytest.mark.parametrize("loss", ["orpo+sft", ["sigmoid", "simpo"], []])
def test_what_has_a_trainer_of_its_own_stands_alone(loss: Any) -> None:
    with pytest.raises(TrainError, match=r"'train\.loss' is .* orpo and simpo stand alone"):
        losses.names(loss)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_a_trainer_that_trl_no_longer_has(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"trl.experimental.{'orpo' if loss == 'orpo' else 'cpo'}", None)
    with pytest.raises(TrainError, match=f"TRL .* has no trainer for the loss '{loss}'"):
        losses.trainer_class(loss)


def test_only_what_trl_raises_itself_is_its_refusal() -> None:
    from trl import DPOConfig, DPOTrainer

    with pytest.raises(TrainError, match=r"TRL refuses the training arguments: .*\bmodel\b") as refused, losses.combined():
        DPOTrainer(model=None, args=DPOConfig(output_dir="unused", report_to=[]), train_dataset=None)
    assert isinstance(refused.value.__cause__, ValueError | NotImplementedError)
    with pytest.raises(ValueError, match="invalid literal"), losses.combined():
        int("a fault of ours")
