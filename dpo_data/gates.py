"""What must hold before anything is published or trained on: the recipe's `[gates]`, checked against the audit of the judge."""

from collections.abc import Iterable

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


MISSING = {
    "max_tie_rate": "no two answers to one prompt were judged",
    "max_flip_rate": "this judge was not shown the same answers in two orders",
    "max_abstain_rate": "nothing is ranked",
    "min_agreement": "there is no calibration slice, no label that matches ([audit] labels), nor two judges of one prompt",
    "min_pairs": "there are no pairs yet",
}
"""Why a gate may have no figure. Such a gate is closed: what cannot be told is not taken for good."""


def gates(limits: config.Gates, audit: Audit | None, pairs: int | None) -> list[Gate]:
    """The gates that the recipe sets, with what the run has. `pairs`: those to train on and for test; None before pair."""
    return [
        Gate(
            name=name,
            value=value,
            limit=limit,
            holds=value is not None and (value <= limit if name.startswith("max_") else value >= limit),
            missing=MISSING[name] if value is None else None,
        )
        for name, value in _values(audit, pairs).items()
        if (limit := getattr(limits, name)) is not None
    ]


def require(gates: Iterable[Gate], where: str) -> None:
    """Raises GateClosed, naming each gate that does not hold, its value and its limit."""
    closed = [_said(gate) for gate in gates if not gate.holds]
    if closed:
        raise GateClosed(
            f"{where} is neither published nor trained on: {'; '.join(closed)}",
            f"Read {where}/report.html, then use another judge or template in a fork, or change [gates] and run again.",
        )


def _values(audit: Audit | None, pairs: int | None) -> dict[str, float | None]:
    """Each gate's figure. Of several judges in one, the flip rate is that of the worst."""
    if audit is None:
        return {**dict.fromkeys(MISSING), "min_pairs": pairs}
    flips = [order.flipped.value for order in audit.order if order.flipped]
    return {
        "max_tie_rate": _value(audit.ties),
        "max_flip_rate": max(flips, default=None),
        "max_abstain_rate": audit.abstained,
        "min_agreement": _agreement(audit),
        "min_pairs": pairs,
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
