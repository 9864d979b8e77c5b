"""Training on a tiny random model: what TRL is given, what comes back, and going on after a kill."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpo_data.config import Recipe
from dpo_data.errors import EngineError, TrainError
from dpo_data.rows import DroppedPair, PreferencePair, prompt_id
from dpo_data.rundir import RunDir
from dpo_data.train import _environment, train
from dpo_data.trainer.child import last_checkpoint

Made = Callable[..., tuple[Recipe, RunDir]]


def silent(stage: str, done: int, total: int) -> None: ...


def a_pair(at: int, chosen: str, rejected: str) -> PreferencePair:
    prompt = [{"role": "user", "content": f"What is {at} plus {at}?"}]
    said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    scores, judge, models = (1.0, 0.0, 1.0), "rule:concise", ("tiny", "tiny")
    return PreferencePair(prompt_id(prompt), prompt, *said, f"c{at}", f"r{at}", *scores, None, None, judge, *models, "made", [])


def pairs(count: int) -> list[PreferencePair]:
    return [a_pair(at, str(2 * at), f"The sum of the numbers {at} and {at} is equal to {2 * at}.") for at in range(count)]


@pytest.fixture
def made(recipe: Callable[..., Recipe], tiny_model: str, tmp_path: Path) -> Made:
    """A recipe that trains the tiny model, and a run whose pairs are there already."""

    def make(rows: list[PreferencePair], test: list[PreferencePair], **settings: Any) -> tuple[Recipe, RunDir]:
        run = RunDir(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        stage = run.stage("pair").open({}, {})
        stage.write("train.parquet", rows, PreferencePair)
        stage.write("test.parquet", test, PreferencePair)
        stage.write("dropped.parquet", [], DroppedPair)
        stage.finish(prompts=len(rows) + len(test), train=len(rows), test=len(test))
        given = {"model": tiny_model, "learning_rate": 1e-3, "epochs": 2, "batch_size": 8, **settings}
        return recipe(4, train=given), run

    return make


def train_until_killed(recipe: Recipe, run: RunDir) -> None:
    """Train until there is a checkpoint; then the child is killed."""

    def kill() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if last_checkpoint(run.stage("train").path / "checkpoints"):
                for child in psutil.Process().children():
                    if any("trainer.child" in word for word in child.cmdline()):
                        os.kill(child.pid, signal.SIGKILL)
                        return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EngineError, match="SIGKILL"):
        train(recipe, run, silent)
    killer.join()


def weights(run: RunDir) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(next((run.stage("train").path / "model").glob("*.safetensors"))))


def sides(model: str, pair: PreferencePair) -> list[int]:
    """The tokens of prompt and chosen, and of prompt and rejected, by the model's own template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    both = (pair.prompt + side for side in (pair.chosen, pair.rejected))
    return [len(tokenizer.apply_chat_template(side, tokenize=True, return_dict=False)) for side in both]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_trains_what_it_was_given(made: Made, tiny_model: str, method: str) -> None:
    """One pair of 41 does not fit: it is left out and counted, and no other loses a token."""
    rows = pairs(40)
    fits = max(max(sides(tiny_model, pair)) for pair in rows)
    long = a_pair(99, "198", "word " * 80)
    recipe, run = made([*rows, long], [*pairs(48)[40:], long], method=method, max_length=fits)
    steps: list[tuple[int, int]] = []
    manifest = train(recipe, run, lambda stage, done, total: steps.append((done, total)))

    assert (manifest["pairs"], manifest["too_long"], manifest["test_too_long"], manifest["max_length"]) == (40, 1, 1, fits)
    assert (manifest["steps"], manifest["resumed_at"], manifest["precision"]) == (10, 0, "fp32")
    assert steps == [(at, 10) for at in range(1, 11)]
    history = json.loads((run.stage("train").path / "metrics.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)  # policy and reference are the same model at first
    assert losses[-1] < losses[0]
    told = {
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "entropy",
        "grad_norm",
        "kl",
        "chosen_drop",
    }
    assert told | {"entropy", "grad_norm", "kl", "chosen_drop"} <= set(history[0])
    assert 0 <= manifest["held_out"]["rewards/accuracies"] <= 1
    assert sorted(path.name for path in run.stage("train").path.iterdir()) == [
        "manifest.json",
        "metrics.json",
        "model",
        "recipe.json",
        "reference.parquet",
    ]
    assert manifest["answers"] == {"as_sampled": 0, "rendered": 2 * 48} and manifest["shared_prompts"]["on"]
    known = manifest["reference"]
    assert (known["sampled"], known["computed"]) == (0, 48) and "nothing tells" in known["why_computed"]
    assert train(recipe, run, silent) == manifest


@pytest.mark.slow
def test_no_token_is_cut(made: Made, tiny_model: str) -> None:
    """TRL cuts at 1,024 tokens by default, the end token included; every token of both sides is counted instead."""
    rows = [*pairs(7), a_pair(7, "14", "word " * 1200)]
    recipe, run = made(rows, [], epochs=1, args={"logging_steps": 1})
    manifest = train(recipe, run, silent)
    assert manifest["max_length"] > 1200 and manifest["too_long"] == 0
    history = json.loads((run.stage("train").path / "metrics.json").read_text())
    assert max(entry.get("num_tokens", 0) for entry in history) == sum(sum(sides(tiny_model, pair)) for pair in rows)


@pytest.mark.slow
def test_killed_training_goes_on_from_its_checkpoint(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one thread the weights are those of an unbroken training, bit for bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = {"epochs": 4, "save_steps": 5, "args": {"logging_steps": 1}}
    recipe, whole = made(pairs(40), [], **settings)
    train(recipe, whole, silent)
    recipe, broken = made(pairs(40), [], **settings)
    train_until_killed(recipe, broken)
    checkpoints = broken.stage("train").path / "checkpoints"
    (checkpoints / "checkpoint-19").mkdir()
    (checkpoints / "checkpoint-19" / "trainer_state.json").write_text('{"half": ')  # as a kill during a save leaves it

    assert train(recipe, broken, silent)["resumed_at"] in (5, 10, 15, 20)
    expected, found = weights(whole), weights(broken)
    assert expected.keys() == found.keys()
    for name in expected:
        assert found[name].equal(expected[name]), name


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again_where_the_run_ends_before_its_manifest(made: Made) -> None:
    settings = {"epochs": 2, "save_steps": 5, "args": {"logging_steps": 1}}
    recipe, whole = made(pairs(40), [], **settings)
    train(recipe, whole, silent)
    recipe, broken = made(pairs(40), [], **settings)
    stage = broken.stage("train")
    (stage.path / "metrics.json").mkdir(parents=True)  # so that nothing can be written there
    with pytest.raises(IsADirectoryError):
        train(recipe, broken, silent)
    (stage.path / "metrics.json").rmdir()
    (stage.path / "sft-checkpoints" / "checkpoint-5").mkdir(parents=True)  # as a kill leaves it, after the tuned weights
    (stage.path / "sft-checkpoints" / "checkpoint-5" / "trainer_state.json").write_text("{}")
    manifest = train(recipe, broken, silent)
    assert manifest["resumed_at"] == manifest["steps"] == 10
    assert not [file["name"] for file in manifest["files"] if "checkpoint" in file["name"]]
    assert not list(stage.path.glob("*checkpoints"))
    losses = [
        [entry["loss"] for entry in json.loads((run.stage("train").path / "metrics.json").read_text()) if "loss" in entry]
        for run in (whole, broken)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 10
    for name, found in weights(whole).items():
        assert found.equal(weights(broken)[name]), name
    (stage.path / "checkpoints").mkdir()  # as a kill after the manifest leaves it
    train(recipe, broken, silent)
    assert not (stage.path / "checkpoints").exists()


def test_one_process_sees_one_gpu(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, processes, seen in (("2,3", 1, "2"), ("", 1, ""), (None, 1, "0"), ("2,3", 2, None)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        recipe, run = made(pairs(8), [], processes=processes)
        assert _environment(recipe, run).get("CUDA_VISIBLE_DEVICES") == seen


def test_a_model_that_was_half_saved_is_swept(made: Made) -> None:
    """A kill while the weights are written leaves a folder, not a file, under a name for what is not finished."""
    _, run = made(pairs(8), [])
    half = run.stage("train").path / ".model.tmp"
    half.mkdir(parents=True)
    (half / "adapter_config.json").write_text("{")
    run.stage("train").open({}, {})
    assert not half.exists()


def test_only_a_whole_checkpoint_counts(tmp_path: Path) -> None:
    for number, state in ((5, "{}"), (10, "{}"), (15, '{"half'), (20, None)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    found = last_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-10"
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.slow
def test_errors_say_what_to_mend(made: Made, tiny_model: str, tmp_path: Path) -> None:
    import shutil

    recipe, run = made(pairs(8), [], args={"betta": 1})
    with pytest.raises(TrainError, match=r"betta.*\[train.args\]"):
        train(recipe, run, silent)
    recipe, run = made(pairs(8), [], max_length=8)
    with pytest.raises(TrainError, match="No pair fits into max_length 8 tokens; the shortest needs"):
        train(recipe, run, silent)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    (bare / "chat_template.jinja").unlink()
    recipe, run = made(pairs(8), [], model=str(bare))
    with pytest.raises(TrainError, match="has no chat template"):
        train(recipe, run, silent)


def test_an_engine_without_weights_cannot_be_trained(made: Made) -> None:
    recipe, run = made(pairs(8), [], model=None)
    with pytest.raises(TrainError, match=r"'echo' names no weights to train\. Set train\.model"):
        train(recipe, run, silent)
