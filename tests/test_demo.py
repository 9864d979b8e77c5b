"""The demo: its questions and rule, its tiny model's loss, and the whole story on a fresh seed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_data.config import load
from dpo_data.demo import model
from dpo_data.demo.questions import concise_and_correct, questions
from dpo_data.errors import RecipeError
from dpo_data.formats.prompts import Prompts, is_held_out, read_prompts
from dpo_data.share import SHIPPED


def test_the_shipped_prompts_are_the_questions() -> None:
    shipped = [row.prompt[-1]["content"] for row in read_prompts(Prompts(path="prompts/demo.jsonl"))]
    assert shipped == [question.prompt for question in questions()]
    assert len(set(shipped)) == len(shipped) == 733


@pytest.mark.parametrize(
    ("question", "text", "score"),
    [
        ("What is the capital of France?", "Paris", 3),
        ("What is the capital of France?", "It is PARIS.", 3),
        ("What is the capital of France?", "The capital city of the country France is called Paris.", 2),
        ("What is the capital of France?", "Rome", 0),
        ("What is the capital of France?", "Parisian", 0),
        ("What is 5 plus 5?", "10", 3),
        ("What is 5 plus 5?", "100", 0),
        ("Hi", "hi!", 3),
        ("Hi", "It is so nice to meet you and I hope you are well", 2),
        ("Hi", "", 0),
        ("What is the capital of Atlantis?", "Atlantis", None),
    ],
)
def test_the_rule(question: str, text: str, score: float | None) -> None:
    assert concise_and_correct([{"role": "user", "content": question}], text) == score


def test_both_ways_of_saying_it_are_right() -> None:
    import random

    for question in questions():
        messages = [{"role": "user", "content": question.prompt}]
        assert concise_and_correct(messages, question.answer) == 3
        assert concise_and_correct(messages, question.verbose(random.Random(0))) == 2


def test_the_model_never_sees_what_is_held_out() -> None:
    recipe = load("flows/recipes/demo.toml")
    held_out = {
        row.prompt[-1]["content"]
        for row in read_prompts(Prompts(path="prompts/demo.jsonl"))
        if is_held_out(row, 0.2, recipe.seed)
    }
    seen = {question.prompt for question in model._kept(recipe)}
    assert not held_out & seen
    assert len(held_out) + len(seen) == 733 and len(held_out) > 100


def test_the_real_model_s_recipe_is_the_demo_s_but_for_the_model() -> None:
    demo, real = (load(f"flows/recipes/{name}.toml").model_dump() for name in ("demo", "smollm2"))
    demo["name"], demo["sample"]["engine"]["model"] = "smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert real == demo


def test_the_loss_weighs_only_the_answer(tiny_model: str) -> None:
    """One answer of two tokens and one of three, padded: worked out by hand from the model's own log-probs."""
    import torch
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows: list[model.Encoded] = [
        ([5, 6, 7, 8], [-100, -100, 7, 8]),
        ([9, 10, 11, 12], [-100, 10, 11, 12]),
        ([5, 13], [-100, 13]),
    ]
    total = weight = 0.0
    for ids, labels in rows:
        logprobs = llama(torch.tensor([ids])).logits[0].log_softmax(-1)
        answer = [at for at, label in enumerate(labels) if label != -100]
        for place, at in enumerate(answer):
            w = 0.35 if place == 0 else len(answer) ** -0.5
            total -= w * logprobs[at - 1, ids[at]].item()
            weight += w
    assert model._loss(llama, rows, 0).item() == pytest.approx(total / weight, rel=1e-4)


def test_somebody_else_s_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="holds another model"):
        model.make(load("flows/recipes/demo.toml", [f"sample.engine.model={tmp_path}"]))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_teaches(tmp_path: Path) -> None:
    """What `make demo` does, on a seed of its own: no download, and the held-out answers are the better for it."""
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PREFECT_API_URL", None)

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    recipe = str(SHIPPED / "flows/recipes/demo.toml")
    run("-m", "dpo_data.demo.model", recipe, "seed=11")
    printed = run(str(SHIPPED / "flows/sample_and_train.py"), recipe, "--set", "seed=11")
    folder = tmp_path / "runs/demo"
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    base, trained = report["evaluate"]["base"], report["evaluate"]["trained"]
    assert trained["score"] >= base["score"] + 0.25
    assert trained["shares"]["correct"] >= base["shares"]["correct"] - 0.03
    assert "concise and correct" in printed and "runs/demo/report.html" in printed
    assert (folder / "report.html").stat().st_size > 50_000 and (folder / "curves.png").exists()
