"""Watching over training: what is logged and saved for it, what stops it, and which checkpoint is kept."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_data.child import Parent
from dpo_data.errors import TrainError
from dpo_data.trainer import health
from dpo_data.trainer.checkpoints import last_checkpoint, step_of
from dpo_data.trainer.losses import reference_free


def saving(
    settings: Mapping[str, Any], limits: Mapping[str, float | None], steps: float, logging: int, test: int
) -> dict[str, Any]:
    """Of transformers' TrainingArguments, when to save and to evaluate on the `test` pairs.

    A checkpoint is saved where a log is made, so that it is known how its weights did: every `save_steps`, rounded down to
    whole logs. Where something may stop training, that is at least ten times in all, and each is evaluated. Raises TrainError
    for early_stop without test pairs.
    """
    early = settings["early_stop"]
    if early and not test:
        raise TrainError(
            "train.early_stop looks at held-out pairs, and none is there that fits", "Raise pair.test, or train.max_length."
        )
    watched = early or any(limit is not None for limit in limits.values())
    wanted = min(settings["save_steps"], steps / 10) if watched else settings["save_steps"]
    every = logging * max(1, int(wanted // logging))
    given: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,  # it would log the average of the losses before in place of NaN
    }
    if watched and test:
        given |= {"eval_strategy": "steps", "eval_steps": every, "metric_for_best_model": "loss", "greater_is_better": False}
    if early:
        given |= {"load_best_model_at_end": True, "restore_callback_states_from_checkpoint": True}
    return given


def early_stopping(evaluations: int) -> Any:
    """transformers' EarlyStoppingCallback. The step at which it stops is not saved: a training that is killed before its model
    is saved goes on from the checkpoint before, and stops there again."""
    from transformers import EarlyStoppingCallback

    class EarlyStopping(EarlyStoppingCallback):  # type: ignore[misc]
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **others: Any) -> None:
            super().on_evaluate(args, state, control, metrics, **others)
            if self.early_stopping_patience_counter >= self.early_stopping_patience and state.global_step < state.max_steps:
                control.should_save = False

    return EarlyStopping(early_stopping_patience=evaluations)


def oversee(trainer: Any, job: Mapping[str, Any], parent: Parent) -> Any:
    """Give a trainer what watches over it. Returns the watcher. It comes before the trackers, which so see its figures too."""
    settings = job["settings"]
    watch = watcher(parent, job["gates"], not reference_free(settings["loss"]))
    trainer.callback_handler.callbacks.insert(0, watch)
    if settings["early_stop"]:
        trainer.add_callback(early_stopping(settings["early_stop"]))
    return watch


def watcher(parent: Parent, limits: Mapping[str, float | None], reference: bool) -> Any:
    """A callback that adds the figures of `health` to each log, tells the parent each alarm as it rings, and stops training at
    once where a limit is exceeded or the loss is no number: `stopped` then says why. What stops it is neither evaluated nor
    saved. The last step is always logged. Raises TrainError for a limit on KL where the loss has no `reference`."""
    from transformers import TrainerCallback

    if not reference and limits.get("max_kl") is not None:
        raise TrainError(
            "gates.max_kl limits KL against a reference, and this loss has none", "Set gates.max_chosen_drop alone."
        )

    class Watcher(TrainerCallback):  # type: ignore[misc]
        stopped: dict[str, Any] | None = None
        rung: frozenset[str] = frozenset()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.rung = frozenset(alarm.name for alarm in health.alarms(state.log_history, state.max_steps))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log |= state.global_step >= state.max_steps

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            entry = state.log_history[-1]
            first = next((other for other in state.log_history if "logps/chosen" in other), None)
            found = health.figures(entry, args.beta, first)
            entry.update(found)
            logs.update(found)
            for alarm in health.ringing(state.log_history, state.max_steps):
                if alarm.name not in self.rung:
                    parent.send({"alarm": alarm.said, "at": alarm.step})
                    self.rung |= {alarm.name}
            if not self.stopped and (exceeded := health.exceeded(entry, limits)):
                self.stopped = exceeded
                parent.send({"alarm": f"{health.said(exceeded)}: training stops", "at": exceeded["step"]})
                control.should_training_stop = True
                control.should_evaluate = control.should_save = False

    return Watcher()


def settle(trainer: Any, watch: Any, patience: int) -> dict[str, Any]:
    """Load what is kept, and tell of it: `health`, and its metrics on the held-out pairs, empty where there are none.

    `watch`: the watcher; `patience`: the recipe's early_stop. The last step is evaluated before the watcher is asked whether a
    limit was exceeded. Raises TrainError where nothing was saved before the stop.
    """
    state = trainer.state
    if not watch.stopped and not trainer.args.load_best_model_at_end:
        _held_out(trainer, state.global_step)
    stopped = watch.stopped
    if not stopped and patience and state.global_step < state.max_steps:
        stopped = {"gate": "early_stop", "value": patience, "limit": patience, "step": state.global_step}
    kept = _keep(trainer, stopped)
    held_out = _held_out(trainer, kept)
    trained = [entry for entry in state.log_history if "chosen_drop" in entry and entry["step"] <= kept]
    told = {**(trained[-1] if trained else {}), **held_out}
    health_of_kept = {figure: told.get(figure) for figure in ("chosen_drop", "rejected_drop", "kl")}
    rang = [asdict(alarm) for alarm in health.alarms(state.log_history, state.max_steps)]
    return {"held_out": held_out, "health": {"alarms": rang, "stopped": stopped, "kept": kept, **health_of_kept}}


def _keep(trainer: Any, stopped: Mapping[str, Any] | None) -> int:
    """Load what is to be kept, where that is not the last step. Returns its step.

    With early stopping it is the checkpoint with the least loss on the held-out pairs, which transformers has loaded. Where a
    limit has stopped training it is that one too, for what exceeds a limit there is not saved. Without such pairs it is the
    last one after which a log was within the limits: the log of its own step tells of the weights before that step.
    """
    state = trainer.state
    if state.best_model_checkpoint and trainer.args.load_best_model_at_end:
        return step_of(Path(state.best_model_checkpoint))
    if not stopped:
        return int(state.global_step)
    if not state.best_model_checkpoint:
        seen = [entry["step"] for entry in state.log_history if "loss" in entry and entry["step"] < stopped["step"]]
        last = last_checkpoint(Path(trainer.args.output_dir), before=max(seen, default=0))
        if last is None:
            raise TrainError(
                f"Step {stopped['step']}: {health.said(stopped)}, before a checkpoint could be kept",
                "Lower train.learning_rate, or train.save_steps to keep what came before.",
            )
        state.best_model_checkpoint = str(last)
    trainer._load_best_model()  # transformers has no public way
    return step_of(Path(state.best_model_checkpoint))


def _held_out(trainer: Any, kept: int) -> dict[str, float]:
    """What TRL measures of what is kept; from the log, where it was evaluated while it trained."""
    if trainer.eval_dataset is None:
        return {}
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"] == kept]
    measured = logged[-1] if logged else trainer.evaluate()
    return {
        name.removeprefix("eval_"): value
        for name, value in measured.items()
        if name != "step" and not name.endswith("_per_second")
    }
