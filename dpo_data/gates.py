"""What must hold before anything is published or trained on: the recipe's `[gates]`, and what a run has come to."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from dpo_data import config
from dpo_data.audit.schema import Audit, Figure, Part
from dpo_data.errors import GateClosed


class Gate(Part):
    name: str = Field(description="the gate's key in the recipe")
    value: float | None = Field(description="this run's figure; null where there is none, and then the gate does not hold")
    limit: float = Field(description="the recipe's limit: `max_` what it may not exceed, `min_` what it must reach")
    holds: bool = Field(description="whether it lets through")
    missing: str | None = Field(description="why there is no figure; null where there is one")
    after: Literal["pair", "train", "evaluate"] = Field(description="the stage that gives the figure")


BEFORE: dict[str, tuple[str, ...]] = {"train": ("pair",), "publish": ("pair", "train", "evaluate")}
"""The stages that do not begin before gates hold, and the stages whose gates these are."""

MISSING = {
    "max_tie_rate": "no two answers to one prompt were judged",
    "max_flip_rate": "this judge was not shown the same answers in two orders",
    "max_abstain_rate": "nothing is ranked",
    "min_agreement": "there is no calibration slice, no label that matches ([audit] labels), nor two judges of one prompt",
    "min_pairs": "there are no pairs yet",
    "max_chosen_drop": "nothing is trained yet, or training did not measure it",
    "max_kl": "nothing is trained yet, or training did not measure it",
    "min_win_rate": "the trained model is not evaluated, or no two answers were compared",
    "min_parse_rate": "the trained model is not evaluated, or the recipe has no evaluate.must_parse",
    "max_perplexity_rise": "the trained model is not evaluated, or the recipe has no evaluate.perplexity",
}
"""Why a gate may have no figure. Such a gate is closed: what cannot be told is not taken for good."""


def gates(
    limits: config.Gates,
    audit: Audit | None,
    pairs: int | None,
    trained: Mapping[str, Any] | None = None,
    evaluated: Mapping[str, Any] | None = None,
) -> list[Gate]:
    """The gates that the recipe sets, with what the run has. `pairs`: those to train on and for test; `trained` and
    `evaluated`: the manifests of those stages. None where the run has not come to it."""
    after: dict[Any, dict[str, float | None]] = {
        "pair": _of_judge(audit, pairs),
        "train": _of_training(trained or {}),
        "evaluate": _of_evaluation(evaluated or {}),
    }
    return [
        Gate(
            name=name,
            value=value,
            limit=limit,
            holds=value is not None and (value <= limit if name.startswith("max_") else value >= limit),
            missing=MISSING[name] if value is None else None,
            after=stage,
        )
        for stage, values in after.items()
        for name, value in values.items()
        if (limit := getattr(limits, name)) is not None
    ]


def require(gates: Iterable[Gate], where: str, stage: str = "publish") -> None:
    """Raises GateClosed where a gate that `stage` needs does not hold, naming each such gate, its value and its limit."""
    closed = [gate for gate in gates if not gate.holds and gate.after in BEFORE[stage]]
    if not closed:
        return
    said = "; ".join(map(_said, closed))
    if any(gate.after == "pair" for gate in closed):
        raise GateClosed(
            f"{where} is neither published nor trained on: {said}",
            f"Read {where}/report.html, then use another judge or template in a fork, or change [gates] and run again.",
        )
    raise GateClosed(
        f"{where} is not published: {said}",
        f"Read {where}/report.html, then train otherwise or on other pairs in a fork, or change [gates] and run again.",
    )


def _of_judge(audit: Audit | None, pairs: int | None) -> dict[str, float | None]:
    """What the judge and the pairs tell. Of several judges in one, the flip rate is that of the worst."""
    if audit is None:
        return {**dict.fromkeys(("max_tie_rate", "max_flip_rate", "max_abstain_rate", "min_agreement")), "min_pairs": pairs}
    flips = [order.flipped.value for order in audit.order if order.flipped]
    return {
        "max_tie_rate": _value(audit.ties),
        "max_flip_rate": max(flips, default=None),
        "max_abstain_rate": audit.abstained,
        "min_agreement": _agreement(audit),
        "min_pairs": pairs,
    }


def _of_training(manifest: Mapping[str, Any]) -> dict[str, float | None]:
    """What training measured on itself, in nats a token."""
    health = manifest.get("health") or {}
    return {"max_chosen_drop": health.get("chosen_drop"), "max_kl": health.get("kl")}


def _of_evaluation(manifest: Mapping[str, Any]) -> dict[str, float | None]:
    """What the trained model does on the held-out prompts and on a given text, beside the base."""
    won = (manifest.get("gain") or {}).get("over_base")
    trained, perplexity = manifest.get("trained") or {}, manifest.get("perplexity")
    return {
        "min_win_rate": None if won is None else trained.get("win_rate"),
        "min_parse_rate": trained.get("parsed"),
        "max_perplexity_rise": perplexity["rise"]["value"] if perplexity else None,
    }


def _agreement(audit: Audit) -> float | None:
    """With people: on a cascade's calibration slice, else on the labelled prompts; what they say of prompts that the judge was
    unsure of tells nothing of the others. Without people: of a cascade's judges on the slice, else of the two judges who agree
    least, over all prompts that both ranked."""
    slice = audit.route.calibration if audit.route else None
    if slice and audit.route and (audit.route.people or not audit.people):
        return _value(slice.tau)
    if audit.people:
        return _value(audit.people.judge.tau)
    if audit.route and audit.route.people:
        return None
    return min((members.agreement.value for members in audit.members if members.agreement), default=None)


def _value(figure: Figure | None) -> float | None:
    return figure.value if figure else None


def _said(gate: Gate) -> str:
    if gate.value is None:
        return f"{gate.name} = {gate.limit:g}, and there is no such figure, since {gate.missing}"
    return f"{gate.name} = {gate.limit:g}, and it is {gate.value:.4g}"
