"""What the report says that training did."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_data.config import Recipe
from dpo_data.report import report
from dpo_data.report.plots import PANELS
from dpo_data.report.training import ending
from dpo_data.rundir import RunDir

Made = Callable[..., tuple[dict[str, Any], str]]

ALARM = {"name": "kl_leaps", "step": 6, "value": 0.4, "limit": 0.1, "said": "the model moved <b>0.4</b> nats a token away"}
STOP = {"gate": "max_kl", "value": 0.412345, "limit": 0.25, "step": 8}


def logged(step: int, **more: float) -> dict[str, Any]:
    """A training log and, at every fourth step, one on the test pairs."""
    told = {"loss": 0.6, "rewards/chosen": 0.1, "rewards/rejected": -0.1, "rewards/margins": 0.2, "rewards/accuracies": 1.0}
    told |= {"logps/chosen": -2.0, "logps/rejected": -9.0, "chosen_drop": -0.02, "rejected_drop": 0.3, "kl": 0.1}
    return {"step": step, **told, "entropy": 0.5, "grad_norm": 1.0, **more}


@pytest.fixture
def made(recipe: Callable[..., Recipe], tmp_path: Path) -> Made:
    """The report of a run of which training is all that is there; as JSON, and as the page's text."""

    def make(health: dict[str, Any] | None, history: list[dict[str, Any]], **facts: Any) -> tuple[dict[str, Any], str]:
        run = RunDir(tmp_path / "run")
        stage = run.stage("train").open({}, {})
        stage.write_text("metrics.json", json.dumps(history))
        told = {"model": "m", "model_revision": None, "pairs": 30, "too_long": 1, "max_length": 50, "precision": "fp32"}
        told |= {"device": "cpu", "steps": 8, "resumed_at": 0, "held_out": {"loss": 0.5, "rewards/accuracies": 0.75}}
        stage.finish(**{**told, **({"health": health} if health else {}), **facts})
        found = report(recipe(4, train={"model": "m"}), run)
        page = (run.path / "report.html").read_text()
        section = page[page.index('<section id="training">') :].split("</section>")[0]
        return found["train"], " ".join(section.replace("<wbr>", "").replace("\xa0", " ").split())

    return make


def test_what_rang_and_what_stopped_it(made: Made) -> None:
    history = [logged(step) for step in range(1, 9)] + [{"step": 8, "eval_loss": 0.5, "eval_kl": 0.2}]
    health = {"alarms": [ALARM], "stopped": STOP, "kept": 4, "chosen_drop": -0.02, "rejected_drop": 0.3, "kl": 0.12}
    told, page = made(health, history)
    assert (told["alarms"], told["stopped"], told["kept"], told["kl"]) == ([ALARM], STOP, 4, 0.12)
    assert "It was stopped at step 8 by max_kl: 0.412 nats a token, where the recipe allows 0.25." in page
    assert "Kept are the weights of step 4. Of the test pairs, 75 % are ordered rightly by what is kept." in page
    assert (
        "chosen answers are more likely by 0.02 nats a token, rejected ones less likely by 0.3 nats a token; KL is about 0.12."
        in page
    )
    assert "From step 6: the model moved &lt;b&gt;0.4&lt;/b&gt; nats a token away." in page and "<b>" not in page
    assert ending(told) == "stopped at step 8 by max_kl; kept is step 4"
    assert ending({**told, "stopped": None}) == f"{ALARM['said']}, from step 6"
    titles = re.findall(r"<figure><h3>([^<]+)</h3><svg", page)
    assert titles == [title[0].upper() + title[1:] for title in PANELS][:8]
    dashed = re.findall(r"stroke-dasharray: 4,3;[^\"]*stroke: var\(--(\w+)\)", page)
    assert (dashed.count("closed"), dashed.count("ink")) == (8, 8)  # on each panel


def test_what_went_well_is_said_as_well(made: Made) -> None:
    health = {"alarms": [], "stopped": None, "kept": 8, "chosen_drop": 0.1, "rejected_drop": None, "kl": None}
    told, page = made(health, [logged(step) for step in range(1, 9)])
    assert ending(told) is None and ending(None) is None
    assert "No alarm rang" in page and "stopped" not in page and "Kept" not in page and "var(--closed)" not in page
    assert "Since the first log, chosen answers are less likely by 0.1 nats a token." in page


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        (
            {"gate": "early_stop", "value": 3, "limit": 3, "step": 8},
            "since 3 evaluations brought no lower loss on the test pairs.",
        ),
        (
            {"gate": "finite_loss", "value": None, "limit": None, "step": 8},
            "where the loss or its gradient was no number any more.",
        ),
    ],
)
def test_other_ends(made: Made, stopped: dict[str, Any], said: str) -> None:
    health = {"alarms": [], "stopped": stopped, "kept": 2, "chosen_drop": 0.1, "rejected_drop": 0.1, "kl": 0.1}
    _, page = made(health, [logged(1, loss=float("nan"))])
    assert said in page and "Kept are the weights of step 2." in page


def test_a_log_that_nobody_watched_or_that_is_empty(made: Made) -> None:
    """As of a run that is older than the figures, or of one step that was never logged."""
    told, page = made(None, [{"step": 2, "loss": 0.6}], held_out={})
    assert (told["alarms"], told["stopped"], told["kept"], told["chosen_drop"]) == ([], None, 8, None)
    assert "alarm" not in page and re.findall(r"<figure><h3>([^<]+)", page) == ["Loss"]
    _, page = made(None, [])
    assert "<figure>" not in page
