"""What training's log tells: figures worked out by hand, and alarms that ring for their own reason alone."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data.errors import TrainError
from dpo_data.trainer import health
from dpo_data.trainer.watch import saving

STEPS = 40
Entry = dict[str, Any]


def entry(step: int, **figures: float) -> Entry:
    """A log of a training in which nothing is wrong: the loss falls slowly, chosen answers rise, rejected ones fall."""
    done = step / STEPS
    told = {"loss": 0.69 - 0.2 * done, "grad_norm": 0.1, "entropy": 1.0, "rewards/accuracies": 1.0}
    return {"step": step, **told, "chosen_drop": -0.1 * done, "kl": 0.05 * done, **figures}


def history(**figures: Any) -> list[Entry]:
    """Such a training, with some figures by their step."""
    return [entry(step, **{name: of(step) for name, of in figures.items()}) for step in range(1, STEPS + 1)]


def names(logs: list[Entry]) -> list[str]:
    return [alarm.name for alarm in health.alarms(logs, STEPS)]


def test_figures_are_a_token_and_not_an_answer() -> None:
    """Chosen: log-ratios −3 and −1, of 4 and 16 tokens. Rejected: −6 and −2, of 8 and 12."""
    told = {
        "logps/chosen": -30.0,
        "rewards/chosen": 0.1 * -2,
        "rewards/rejected": 0.1 * -4,
        "tokens/chosen": 10.0,
        "tokens/rejected": 10.0,
    }
    found = health.figures({"loss": 0.6, **told}, beta=0.1)
    assert found == pytest.approx({"chosen_drop": 4 / 20, "rejected_drop": 8 / 20, "kl": 12 / 40})
    held_out = {f"eval_{name}": value for name, value in told.items()}
    assert health.figures({"eval_loss": 0.6, **held_out}, beta=0.1) == pytest.approx(
        {f"eval_{name}": value for name, value in found.items()}
    )
    assert health.figures({"train_runtime": 3.0, "train_loss": 0.6}, beta=0.1) == {}


def test_without_a_reference_the_first_log_stands_for_it() -> None:
    first, later = ({"loss": 1.0, "logps/chosen": -c, "logps/rejected": -r} for c, r in ((1.5, 2.0), (1.75, 3.0)))
    assert health.figures(later, 0.1, first) == {"chosen_drop": 0.25, "rejected_drop": 1.0}
    assert health.figures(first, 0.1, first) == {"chosen_drop": 0.0, "rejected_drop": 0.0}
    held_out = {"eval_loss": 1.0, "eval_logps/chosen": -1.0, "eval_logps/rejected": -2.0}
    assert health.figures(held_out, 0.1, first) == {"eval_chosen_drop": -0.5, "eval_rejected_drop": 0.0}
    assert health.figures(held_out, 0.1) == {}


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(1, 500), st.floats(1, 500), st.floats(0.01, 2))
def test_kl_lies_between_the_drops_and_does_not_hang_on_beta(c: float, r: float, tc: float, tr: float, beta: float) -> None:
    told = {"loss": 0.6, "logps/chosen": -1.0, "tokens/chosen": tc, "tokens/rejected": tr}
    found, other = (
        health.figures({**told, "rewards/chosen": scale * c, "rewards/rejected": scale * r}, scale) for scale in (beta, 1.0)
    )
    assert found == pytest.approx(other, rel=1e-9, abs=1e-9)
    low, high = sorted((found["chosen_drop"], found["rejected_drop"]))
    assert low - 1e-9 <= found["kl"] <= high + 1e-9


def test_a_training_that_goes_well_rings_nothing() -> None:
    assert names(history()) == []
    assert names(history(chosen_drop=lambda step: 0.2 * math.sin(step))) == []  # up and down is no fall
    assert names(history(kl=lambda step: 0.01 * step)) == []  # nor is a steady way a leap
    assert names([*history(), {"step": STEPS, "train_runtime": 1.0, "train_loss": 0.6}]) == []


def test_each_alarm_rings_for_its_reason_alone() -> None:
    fall = history(chosen_drop=lambda step: 0.05 * step)
    assert names(fall) == ["chosen_falls"]
    (alarm,) = health.alarms(fall, STEPS)
    assert alarm.value is not None and alarm.limit == health.FALL < alarm.value and 5 < alarm.step < 12
    assert f"{alarm.value:.2g} nats a token" in alarm.said
    assert names(history(chosen_drop=lambda step: 0.4 - 0.005 * step)) == []  # it is low, and rises again

    assert names(history(loss=lambda step: 0.69 * 0.7**step)) == ["accuracy_saturates"]
    assert names(history(loss=lambda step: 0.69 if step < 25 else 0.01)) == []  # late is what one wishes for
    assert names(history(loss=lambda step: 0.69 * 0.7**step, **{"rewards/accuracies": lambda step: 0.9})) == []

    (alarm,) = health.alarms(history(kl=lambda step: 0.02 + 0.01 * (step % 2) + 0.5 * (step >= 20)), STEPS)
    assert (alarm.name, alarm.step) == ("kl_leaps", 20)
    assert names(history(kl=lambda step: 0.001 * step + 0.05 * (step >= 20))) == []  # many times the usual, and still little

    assert names(history(entropy=lambda step: 2.0 * 0.9**step)) == ["entropy_collapses"]


def test_a_plunge_needs_no_trend() -> None:
    """A training of few logs has none, and may be ruined all the same."""
    few = [entry(step, chosen_drop=fallen) for step, fallen in ((1, 0.0), (2, 1.1))]
    (alarm,) = health.alarms(few, 2)
    assert (alarm.name, alarm.step, alarm.value, alarm.limit) == ("chosen_falls", 2, 1.1, health.PLUNGE)
    assert health.alarms([entry(1, chosen_drop=0.0), entry(2, chosen_drop=0.9)], 2) == []


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_no_number_rings_at_once_and_stops(name: str) -> None:
    logs = [entry(1), {**entry(2), name: math.nan}]
    (alarm,) = health.alarms(logs, STEPS)
    assert (alarm.name, alarm.step, alarm.value) == ("nan_loss", 2, None)
    assert health.exceeded(logs[0], {}) is None
    assert health.exceeded(logs[1], {}) == {"gate": "finite_loss", "value": None, "limit": None, "step": 2}


def test_a_limit_holds_for_training_and_held_out_pairs() -> None:
    limits = {"max_chosen_drop": 0.3, "max_kl": None}
    assert health.exceeded({"step": 3, "chosen_drop": 0.3, "kl": 9.0}, limits) is None
    for name in ("chosen_drop", "eval_chosen_drop"):
        found = health.exceeded({"step": 3, name: 0.4}, limits)
        assert found == {"gate": "max_chosen_drop", "value": 0.4, "limit": 0.3, "step": 3}
        assert health.said(found) == "gates.max_chosen_drop = 0.3 nats a token does not hold: it is 0.4"
    assert health.exceeded({"step": 3, "train_loss": 0.5}, limits) is None


figure = st.floats(-1, 1)
log = st.fixed_dictionaries(
    {
        "loss": st.floats(0, 1) | st.just(math.nan),
        "entropy": st.floats(0, 2),
        "chosen_drop": figure,
        "kl": figure,
        "rewards/accuracies": st.floats(0, 1),
    }
)


@given(st.lists(log, min_size=1, max_size=25), st.integers(0, 25))
def test_what_has_rung_stays_and_is_told_once(logs: list[Entry], end: int) -> None:
    """So a training that goes on from a checkpoint knows what has rung by the log alone."""
    logs = [{**one, "step": at} for at, one in enumerate(logs, 1)]
    before, after = health.alarms(logs[:end], 25), health.alarms(logs, 25)
    assert after[: len(before)] == before
    assert len({alarm.name for alarm in after}) == len(after)
    assert all(alarm in health.ringing(logs[: alarm.step], 25) for alarm in after)


@given(st.integers(1, 200), st.floats(1, 5000), st.integers(1, 50), st.booleans(), st.integers(0, 3), st.integers(0, 9))
def test_what_is_saved_was_logged(save: int, steps: float, logging: int, gated: bool, early: int, test: int) -> None:
    settings, limits = {"save_steps": save, "early_stop": early}, {"max_kl": 0.5 if gated else None}
    if early and not test:
        with pytest.raises(TrainError, match=r"none is there that fits\. Raise pair\.test"):
            saving(settings, limits, steps, logging, test)
        return
    given = saving(settings, limits, steps, logging, test)
    assert given["save_steps"] % logging == 0 < given["save_steps"]
    if gated or early:
        assert given["save_steps"] <= max(logging, min(save, steps / 10))
        assert (given.get("eval_steps") == given["save_steps"]) == bool(test)
    else:
        assert given["save_steps"] == max(logging, save - save % logging) and "eval_steps" not in given
    assert given.get("load_best_model_at_end", False) == bool(early)
