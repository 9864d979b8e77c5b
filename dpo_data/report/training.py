"""What training did, for the report."""

from typing import Any

from dpo_data.report import facts, schema
from dpo_data.report.plots import ALARM, INK, Marks
from dpo_data.rundir import RunDir


def training(run: RunDir, manifest: dict[str, Any]) -> schema.Train:
    """How training went, from its manifest and log."""
    history = facts.history(run)
    logged = [facts.finite(entry) for entry in history if "loss" in entry]
    known = {name: manifest[name] for name in schema.Train.model_fields if name in manifest}
    health = manifest.get("health") or {}
    return schema.Train(
        **{
            **known,
            "held_out": facts.finite(manifest["held_out"]),
            "first": logged[0] if logged else {},
            "last": logged[-1] if logged else {},
            "alarms": health.get("alarms", []),
            "stopped": health.get("stopped"),
            "kept": health.get("kept", manifest["steps"]),
            **{name: health.get(name) for name in ("chosen_drop", "rejected_drop", "kl")},
        }
    )


def marks(trained: schema.Train) -> Marks:
    """The steps that the curves show: where an alarm rang, and what is kept where that is not the last step."""
    kept = {trained.kept: INK} if trained.kept != trained.steps else {}
    return {**kept, **{alarm.step: ALARM for alarm in trained.alarms}}


def ending(train: dict[str, Any] | None) -> str | None:
    """In a few words, what stopped training or what rang; None where nothing did. `train` is as in report.json."""
    if train and (stop := train["stopped"]):
        return f"stopped at step {stop['step']:,} by {stop['gate']}; kept is step {train['kept']:,}"
    if train and (alarms := train["alarms"]):
        return f"{alarms[0]['said']}, from step {alarms[0]['step']:,}"
    return None
