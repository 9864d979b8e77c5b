"""Supervised fine-tuning before the preferences: on which tokens, into which weights, and what stands on them."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inside import Died, Inside
from test_losses import log_probs
from test_train import Made, a_pair, made, pairs, silent, weights  # noqa: F401

from dpo_data.demonstrations import demonstrations
from dpo_data.errors import InputError, StaleRun
from dpo_data.formats.prompts import Prompts
from dpo_data.rows import PreferencePair
from dpo_data.rundir import RunDir
from dpo_data.train import train


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> type[Inside]:
    """Training happens in this process; its class tells what was heard and may let it die."""

    class Within(Inside): ...

    monkeypatch.setattr("dpo_data.train.Child", Within)
    return Within


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def history(run: RunDir, key: str) -> list[float]:
    entries = json.loads((run.stage("train").path / "metrics.json").read_text())
    return [entry[key] for entry in entries if key in entry]


def written(tmp_path: Path, *records: dict[str, Any]) -> str:
    path = tmp_path / "instructions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def loaded(folder: Path, adapter: Path | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return PeftModel.from_pretrained(model, adapter) if adapter else model


def likelihood(model: Any, tokenizer: Any, rows: list[PreferencePair]) -> float:
    """The mean log-prob, in nats, of the chosen answers' tokens."""
    found: list[float] = []
    for pair in rows:
        prompt, whole = (
            tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, add_generation_prompt=not answered)
            for turns, answered in ((pair.prompt, False), (pair.prompt + pair.chosen, True))
        )
        found += log_probs(model, prompt, whole[len(prompt) :])[len(prompt) - 1 :]
    return sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences_start_from_what_was_fine_tuned(
    made: Made,  # noqa: F811
    within: type[Inside],
    tiny_model: str,
    method: str,
) -> None:
    """On the chosen answers, each once, though one of them is in two pairs. The reference is the tuned model, so the first loss
    of the preferences is ln 2, and no log-prob from sampling holds."""
    from transformers import AutoTokenizer

    rows = pairs(8)
    again = replace(a_pair(0, "0", "Nothing."), chosen_id="c0", rejected_id="another")
    settings = {"method": method, "sft": {"epochs": 12, "learning_rate": 5e-3, "args": {"logging_steps": 1}}}
    recipe, run = made([*rows, again], [], epochs=1, **settings)
    manifest = train(recipe, run, silent)

    folder = run.stage("train").path
    assert manifest["sft"] == {"rows": 8, "too_long": 0, "unanswered": 0, "steps": 12} and manifest["pairs"] == 9
    assert manifest["base"] == ("sft" if method == "lora" else None)
    assert manifest["reference"]["sampled"] == 0 and "fine-tuning" in manifest["reference"]["why_computed"]
    assert {one["stage"] for one in within.heard if "step" in one} == {"sft", "train"}
    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    before, after = (likelihood(loaded(Path(place)), tokenizer, rows) for place in (tiny_model, folder / "sft"))
    losses = history(run, "sft/loss")
    assert -losses[0] == pytest.approx(before, rel=1e-4), "a batch of all, before any step"
    assert losses[-1] < losses[0] - 1 and after > before + 1
    assert history(run, "loss")[0] == pytest.approx(math.log(2), abs=1e-3)

    assert not (folder / "sft" / "adapter_config.json").exists() and not list(folder.glob("*checkpoints"))
    trained = loaded(folder / "sft", folder / "model") if method == "lora" else loaded(folder / "model")
    assert likelihood(trained, tokenizer, rows) > before + 1, "what was learnt first is still there"


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_what_is_tuned_is_not_tuned_again(made: Made, within: type[Inside]) -> None:  # noqa: F811
    """Killed within the tuning it goes on from its checkpoint; killed after it, from the tuned weights. On one thread it ends
    with the weights of an unbroken training, bit for bit."""
    settings = {"save_steps": 2, "sft": {"epochs": 6}}
    recipe, whole = made(pairs(8), [], **settings)
    train(recipe, whole, silent)
    recipe, run = made(pairs(8), [], **settings)
    tuned = run.stage("train").path / "sft"
    within.ends_at = ("sft", 5)
    with pytest.raises(Died):
        train(recipe, run, silent)
    assert not tuned.exists()
    within.ends_at = ("train", 1)
    with pytest.raises(Died):
        train(recipe, run, silent)
    assert [one["step"] for one in within.heard if one.get("stage") == "sft" and "step" in one] == [5, 6]
    before = (tuned / "model.safetensors").read_bytes()

    within.ends_at = None
    manifest = train(recipe, run, silent)
    assert not [one for one in within.heard if one.get("stage") == "sft"]
    assert (tuned / "model.safetensors").read_bytes() == before
    assert manifest["sft"]["steps"] == 6 and len(history(run, "sft/loss")) == 6
    expected, found = weights(whole), weights(run)
    assert expected.keys() == found.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.slow
def test_a_file_of_instructions(made: Made, within: type[Inside], tmp_path: Path) -> None:  # noqa: F811
    """Its answers are what is learnt, of scored ones the best; what does not fit and what has no answer is counted."""
    records = [{"prompt": f"What is {at} plus {at}?", "completion": str(2 * at)} for at in range(8)]
    scored = {"prompt": "Two?", "completions": [{"text": "No", "score": 1}, {"text": "Yes", "score": 2}]}
    too_long = {"prompt": "Long?", "completion": "word " * 300}
    path = written(tmp_path, *records, scored, too_long, {"prompt": "Well?"})
    recipe, run = made(pairs(8), [], epochs=1, max_length=120, sft={"path": path})
    manifest = train(recipe, run, silent)
    assert manifest["sft"] == {"rows": 9, "too_long": 1, "unanswered": 1, "steps": 2}

    written(tmp_path, *records, scored)
    with pytest.raises(StaleRun, match=r"inputs\.sft"):
        train(recipe, run, silent)


def test_which_answers_are_imitated(tmp_path: Path) -> None:
    records = [
        {"prompt": "One?", "completions": [{"text": "1", "score": 1}, {"text": "2", "score": 3}, {"text": "3", "score": 3}]},
        {"prompt": "Two?", "completions": ["yes", "no"]},
        {"messages": [{"role": "user", "content": "Three?"}, {"role": "assistant", "content": "3"}]},
        {"prompt": "Four?"},
    ]
    form = {"system": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    found = demonstrations(Prompts(path=written(tmp_path, *records), **form))
    assert all(row.prompt[0] == {"role": "system", "content": "Be brief."} for row in found), "in the form of the recipe's own"
    assert all(row.chat_template_kwargs == {"enable_thinking": False} for row in found)
    assert [[one.text for one in row.completions] for row in found] == [["2"], ["yes", "no"], ["3"], []]
    assert [row.error for row in found] == [None, None, None, "no answer came with this prompt"]
    with pytest.raises(InputError, match="holds no answers to fine-tune on"):
        demonstrations(Prompts(path=written(tmp_path, {"prompt": "Four?"})))


@pytest.mark.slow
def test_the_loss_is_on_the_answer_alone(tiny_model: str, tmp_path: Path) -> None:
    """Rows for TRL from pairs and from samples: the same tokens, and labels where an answer's stand."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from dpo_data.rows import Sample
    from dpo_data.trainer.sft import of_pairs, of_samples
    from dpo_data.trainer.tokens import tokenize

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = pairs(3)
    tokens = tokenize(rows, {}, tokenizer, {tokenizer.eos_token_id})
    found = of_pairs(tokens).to_list()
    assert [row["input_ids"] for row in found] == [row["prompt_ids"] + row["chosen_ids"] for row in tokens]
    for row, source in zip(found, tokens, strict=True):
        assert row["labels"] == [-100] * len(source["prompt_ids"]) + source["chosen_ids"]
        assert row["labels"][-1] == tokenizer.eos_token_id

    records = [{"prompt": pair.prompt, "completion": pair.chosen[0]["content"]} for pair in rows]
    stage = RunDir(tmp_path / "run").stage("train").open({}, {})
    path = stage.write("demonstrations.parquet", demonstrations(Prompts(path=written(tmp_path, *records))), Sample)
    same, left_out = of_samples(str(path), tokenizer, None)
    assert isinstance(same, Dataset) and same.to_list() == found and left_out["too_long"] == 0
    none, left_out = of_samples(str(path), tokenizer, min(len(row["input_ids"]) for row in found) - 1)
    assert (len(none), left_out) == (0, {"too_long": 3, "unanswered": 0})
