"""Tells the parent how far training is."""

from typing import Any

from dpo_data.child import Parent


def reporter(parent: Parent, stage: str = "train") -> Any:
    """A callback that tells the parent each step, log and checkpoint of a training of this name."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            parent.send({"stage": stage, "step": state.global_step, "steps": state.max_steps})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, (int, float))}
            parent.send({"stage": stage, "metrics": numbers, "at": state.global_step})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            parent.send({"stage": stage, "saved": state.global_step})

    return Reporter()
