"""What watches over training, on TRL itself: it stops at once, keeps what was good, and a kill changes nothing."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_data.config import Recipe
from dpo_data.errors import StaleRun, TrainError
from dpo_data.rows import DroppedPair, PreferencePair, prompt_id
from dpo_data.rundir import RunDir
from dpo_data.train import _job, settings, train
from dpo_data.trainer.child import do
from dpo_data.trainer.health import alarms

pytestmark = pytest.mark.slow

HIGH = {"learning_rate": 0.02, "epochs": 3, "batch_size": 4, "args": {"logging_steps": 1}}
"""30 steps, at a rate that is far too high."""
FALLING = {**HIGH, "learning_rate": 0.002, "loss": "apo_down"}
"""The loss that lowers chosen answers, and rejected ones more (arXiv 2408.06266, eq. 8): so they fall for sure."""


class Heard:
    """The parent's side of a training in this process: what it is told. `at` is called with each message."""

    def __init__(self, at: Callable[[Any], None] = lambda message: None):
        self.messages: list[Any] = []
        self._at = at

    def send(self, message: Any) -> None:
        self.messages.append(json.loads(json.dumps(message)))
        self._at(message)

    def __getitem__(self, key: str) -> list[Any]:
        return [message[key] for message in self.messages if key in message]


def pair(at: int) -> PreferencePair:
    prompt = [{"role": "user", "content": f"What is {at} plus {at}?"}]
    said = [[{"role": "assistant", "content": text}] for text in (f"The sum is {2 * at}.", f"It is {at} and {at}")]
    row = (1.0, 0.0, 1.0, None, None, "rule:x", "tiny", "tiny", "made", [])
    return PreferencePair(prompt_id(prompt), prompt, *said, f"c{at}", f"r{at}", *row)


def write_pairs(run: RunDir, test: int) -> None:
    stage = run.stage("pair").open({}, {})
    stage.write("train.parquet", [pair(at) for at in range(40)], PreferencePair)
    stage.write("test.parquet", [pair(at) for at in range(40, 40 + test)], PreferencePair)
    stage.write("dropped.parquet", [], DroppedPair)
    stage.finish(prompts=40 + test, train=40, test=test)


Made = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture
def made(recipe: Callable[..., Recipe], tiny_model: str, tmp_path: Path) -> Made:
    """The job of training the tiny model on 40 pairs, some more of them held out; and the folder it is to be done in."""

    def make(test: int, gates: dict[str, float] | None = None, **given: Any) -> tuple[dict[str, Any], Path]:
        run = RunDir(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        write_pairs(run, test)
        made = recipe(4, train={"model": tiny_model, **given}, gates=gates or {})
        folder = run.stage("train").open({}, {}).path
        return _job(made, run), folder

    return make


def adapter(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(next(folder.glob("*.safetensors"))))


def test_a_gate_stops_training_and_the_best_checkpoint_is_kept(made: Made, tmp_path: Path) -> None:
    job, folder = made(8, {"max_chosen_drop": 0.5}, **FALLING)
    saved = tmp_path / "saved"

    def at(message: Any) -> None:
        if "training stops" in message.get("alarm", ""):
            shutil.copytree(folder / "checkpoints", saved)

    heard = Heard(at)
    do(job, heard)
    (done,) = heard["done"]
    health, history = done["health"], done["history"]
    stopped = health["stopped"]
    assert (stopped["gate"], stopped["limit"]) == ("max_chosen_drop", 0.5) and stopped["value"] > 0.5
    assert stopped["step"] == done["steps"] < 30
    drops = [
        entry.get("chosen_drop", entry.get("eval_chosen_drop")) for entry in history if "loss" in entry or "eval_loss" in entry
    ]
    assert max(drops[:-1]) <= 0.5 < drops[-1]

    evaluated = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert health["kept"] == min(evaluated, key=lambda step: evaluated[step]) < stopped["step"]
    assert (
        done["held_out"]["loss"] == evaluated[health["kept"]]
        and health["chosen_drop"] == done["held_out"]["chosen_drop"] <= 0.5
    )
    kept, model = adapter(saved / f"checkpoint-{health['kept']}"), adapter(folder / "model")
    assert kept.keys() == model.keys() and all(model[name].equal(kept[name]) for name in kept)
    assert any(
        f"gates.max_chosen_drop = 0.5 nats a token does not hold: it is {stopped['value']:.3g}: training stops" in said
        for said in heard["alarm"]
    )


def test_alarms_ring_live_and_stand_in_the_log(made: Made) -> None:
    """Nothing stops it here: what rings is told when it does, and the same again from the log alone."""
    job, _ = made(0, **FALLING)
    heard = Heard()
    do(job, heard)
    (done,) = heard["done"]
    assert done["steps"] == 30 and done["health"]["stopped"] is None and done["health"]["kept"] == 30
    assert "chosen_falls" in [alarm["name"] for alarm in done["health"]["alarms"]]
    assert heard["alarm"] == [alarm["said"] for alarm in done["health"]["alarms"]]
    assert [alarm.step for alarm in alarms(done["history"], 30)] == [alarm["step"] for alarm in done["health"]["alarms"]]
    told = [message["at"] for message in heard.messages if "alarm" in message]
    assert told == [alarm["step"] for alarm in done["health"]["alarms"]]
    last = [entry for entry in done["history"] if "kl" in entry][-1]
    assert (done["health"]["kl"], done["health"]["chosen_drop"]) == (last["kl"], last["chosen_drop"])


def test_without_held_out_pairs_the_last_good_checkpoint_is_kept(made: Made) -> None:
    job, folder = made(0, {"max_kl": 0.5}, **{**FALLING, "method": "full", "learning_rate": 3e-4})
    heard = Heard()
    do(job, heard)
    (done,) = heard["done"]
    health = done["health"]
    assert health["stopped"]["gate"] == "max_kl" and 0 < health["kept"] < health["stopped"]["step"] - 1 and health["kl"] <= 0.5
    assert done["held_out"] == {} and (folder / "model" / "model.safetensors").exists()


def test_a_loss_that_is_no_number_always_stops(made: Made) -> None:
    """Before anything is saved there is nothing to keep; later, what was saved before is."""
    job, _ = made(0, **{**HIGH, "learning_rate": 1e30})
    heard = Heard()
    do(job, heard)
    assert "the loss or its gradient is no number any more, before a checkpoint could be kept" in heard["failed"][0]
    assert "Lower train.learning_rate" in heard["remedy"][0]
    job, folder = made(0, **{**HIGH, "learning_rate": 1e30, "save_steps": 1})
    heard = Heard()
    do(job, heard)
    (done,) = heard["done"]
    assert done["health"]["stopped"]["gate"] == "finite_loss" and done["health"]["kept"] == 1
    assert all(bool(weights.isfinite().all()) for weights in adapter(folder / "model").values())


def test_early_stopping_ends_the_same_after_a_kill(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its worst moment: when it has decided to stop, and the model is not saved yet."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = {**HIGH, "early_stop": 2, "save_steps": 2}
    job, whole = made(8, **given)
    heard = Heard()
    do(job, heard)
    (expected,) = heard["done"]
    stopped, losses = expected["health"]["stopped"], [e for e in expected["history"] if "eval_loss" in e]
    assert stopped == {"gate": "early_stop", "value": 2, "limit": 2, "step": expected["steps"]} and expected["steps"] < 30
    best = min(losses, key=lambda entry: entry["eval_loss"])
    assert expected["health"]["kept"] == best["step"] == expected["steps"] - 4
    assert expected["held_out"]["loss"] == best["eval_loss"]

    job, broken = made(8, **given)

    def kill(message: Any) -> None:
        if message.get("at") == expected["steps"] and "train_runtime" in message.get("metrics", {}):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(job, Heard(kill))
    assert not (broken / "model").exists()
    heard = Heard()
    do(job, heard)
    (found,) = heard["done"]
    assert 0 < found["resumed_at"] < expected["steps"] and found["health"] == expected["health"]
    for name, weights in adapter(whole / "model").items():
        assert adapter(broken / "model")[name].equal(weights), name
    torch.set_num_threads(threads)


def test_without_a_reference_it_is_the_fall_since_the_first_log(made: Made) -> None:
    job, _ = made(4, {"max_chosen_drop": 50.0}, **{**HIGH, "loss": "simpo", "epochs": 1})
    heard = Heard()
    do(job, heard)
    (done,) = heard["done"]
    logs = [entry for entry in done["history"] if "loss" in entry]
    assert [entry["chosen_drop"] for entry in logs] == [logs[0]["logps/chosen"] - entry["logps/chosen"] for entry in logs]
    assert logs[0]["chosen_drop"] == 0 != logs[-1]["chosen_drop"] and not any("kl" in entry for entry in logs)
    assert done["health"]["kl"] is None and done["health"]["chosen_drop"] == done["held_out"]["chosen_drop"]


def test_what_cannot_be_watched_is_said_before_it_begins(made: Made) -> None:
    for given, said in (
        ({"early_stop": 1}, "train.early_stop looks at held-out pairs"),
        ({"loss": "simpo", "gates": {"max_kl": 1.0}}, "gates.max_kl limits KL against a reference"),
        ({"args": {"logging_steps": 0}}, "'train.args.logging_steps' is 0"),
        ({"args": {"sync_ref_model": True}}, "TRL refuses the training arguments: .*sync_ref_model"),
    ):
        job, _ = made(0, **given)
        heard = Heard()
        do(job, heard)
        assert re.search(said, heard["failed"][0])


def test_the_log_warns_as_it_rings(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the level that the terminal shows and Prefect's UI marks."""
    messages = [{"alarm": "it falls", "at": 7}, {"failed": "enough", "remedy": "Rest."}]

    class Child:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def send(self, job: Any) -> None: ...
        def close(self) -> None: ...
        def receive(self) -> Any:
            return messages.pop(0)

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    run = RunDir(tmp_path / "run")
    write_pairs(run, 0)
    monkeypatch.setattr("dpo_data.train.Child", Child)
    with pytest.raises(TrainError, match="enough"):
        train(recipe(4, train={"model": str(tmp_path / "model")}), run, lambda stage, done, total: None)
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (warned[-1].name, warned[-1].getMessage()) == ("dpo_data.train", "train: step 7: it falls")


def test_a_changed_limit_is_another_training(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    stage = RunDir(tmp_path).stage("train")
    given = {"model": "m"}
    stage.open(settings(recipe(4, train=given)), {})
    stage.write_text("metrics.json", "[]")
    with pytest.raises(StaleRun, match=r"gates\.max_kl was null, is 0\.5"):
        stage.open(settings(recipe(4, train=given, gates={"max_kl": 0.5})), {})
    with pytest.raises(StaleRun, match=r"train\.early_stop was 0, is 3"):
        stage.open(settings(recipe(4, train={**given, "early_stop": 3})), {})
    stage.open(settings(recipe(4, train={**given, "save_steps": 9})), {})  # that decides nothing
    watched = RunDir(tmp_path / "watched").stage("train")
    watched.open(settings(recipe(4, train=given, gates={"max_kl": 0.5})), {})
    watched.write_text("metrics.json", "[]")
    with pytest.raises(StaleRun, match="save_steps was 50, is 9"):  # but here it decides what is kept
        watched.open(settings(recipe(4, train={**given, "save_steps": 9}, gates={"max_kl": 0.5})), {})
