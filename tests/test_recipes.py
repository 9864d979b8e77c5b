"""The recipes of known studies and everyday jobs, unchanged but for paths: on tiny random models, and the rows that ship."""

import json
import math
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
from argilla_server import LocalArgilla
from desk import Desk, order_of
from hypothesis import given
from hypothesis import strategies as st

from dpo_data import cli, pipeline
from dpo_data.config import Recipe, load
from dpo_data.errors import Unfinished
from dpo_data.formats import hh
from dpo_data.formats.prompts import Prompts, read_given
from dpo_data.rows import Message, PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.share import SHIPPED

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("quick_vllm")]

HH_TEMPLATE = (SHIPPED / "prompts/templates/hh.jinja").read_text()


def end_soon(model: Any, end: int, more: float) -> None:
    """Make random weights end their answers after some ten tokens: one that is cut off is never chosen. All embeddings, which
    are also the output's, get a common direction, and the end token so much more of it."""
    import torch

    rows = model.get_input_embeddings().weight
    common = torch.tensor([1.0, -1.0]).repeat(rows.shape[1] // 2) / rows.shape[1] ** 0.5
    with torch.no_grad():
        rows += common
        rows[end] += more * common


@pytest.fixture(scope="module")
def chat_model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "chat"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    end_soon(model, tokenizer.eos_token_id, 0.9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny GPT-2, which has no chat template, and to which vLLM applies no adapter."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    torch.manual_seed(0)
    shape = {"n_positions": 1024, "n_embd": 128, "n_layer": 2, "n_head": 4}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ends))
    end_soon(model, tokenizer.eos_token_id, 0.18)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward_model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama whose one logit is a score."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "reward"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1, initializer_range=0.2, tie_word_embeddings=False)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def shipped(tmp_path: Path) -> Callable[..., Path]:
    """The file of a shipped recipe in which other paths and models stand for its own, and nothing else is changed."""

    def write(name: str, paths: dict[str, str]) -> Path:
        text = (SHIPPED / "flows/recipes" / f"{name}.toml").read_text()
        for own, other in paths.items():
            assert f'"{own}"' in text
            text = text.replace(f'"{own}"', json.dumps(other))
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def pairs(run: RunDir) -> list[PreferencePair]:
    return [row for part in ("train", "test") for row in run.stage("pair").rows(PreferencePair, f"{part}.parquet")]


def texts(pair: PreferencePair) -> tuple[str, str]:
    return pair.chosen[-1]["content"], pair.rejected[-1]["content"]


def history(run: RunDir) -> list[dict[str, Any]]:
    return list(json.loads((run.stage("train").path / "metrics.json").read_text()))


def test_hh_gpt2(shipped: Callable[..., Path], run: RunDir, gpt2: str, reward_model: str) -> None:
    """People's choices are trained on as they are; what no person has seen is judged by the reward model."""
    paths = {
        "hf://datasets/Anthropic/hh-rlhf": "prompts/hh.jsonl",
        "vicgalle/gpt2-open-instruct-v1": gpt2,
        "Skywork/Skywork-Reward-V2-Qwen3-0.6B": reward_model,
    }
    recipe = load(shipped("hh-gpt2", paths))
    assert recipe.train
    assert (recipe.train.learning_rate, recipe.train.beta, recipe.train.batch_size) == (1e-6, 0.1, 8)
    told = pipeline.run(recipe, run)
    theirs = {(answers[0].text, answers[1].text) for _, answers in read_given(Prompts(path="prompts/hh.jsonl"))}
    made, held_out = pairs(run), run.stage("sample").require()["held_out"]
    assert {texts(pair) for pair in made} < theirs and len(made) == 20 - held_out and held_out >= 2
    assert any(len(pair.prompt) > 1 for pair in made)

    trained = run.stage("train").require()
    assert trained["pairs"] == told["pairs"]["train"] and trained["steps"] == math.ceil(trained["pairs"] / 8)
    assert trained["answers"] == {"as_sampled": 0, "rendered": 2 * len(made)}
    losses = [entry["loss"] for entry in history(run) if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and all("rewards/margins" in entry for entry in history(run)[:1])
    assert (run.stage("train").path / "model" / "adapter_config.json").exists()
    assert (run.stage("train").path / "model" / "chat_template.jinja").read_text() == HH_TEMPLATE

    sides = {who: list(run.stage("evaluate").rows(Sample, f"{who}.parquet")) for who in ("base", "trained")}
    for rows in sides.values():
        assert len(rows) == held_out and all(len(row.completions) == 2 and not row.error for row in rows)
        assert not any("\n\nHuman:" in one.text for row in rows for one in row.completions)
    rankings = list(run.stage("evaluate").rows(Ranking, "rank.parquet"))
    assert all(len(set(ranking.scores)) > 1 and None not in ranking.scores for ranking in rankings)
    page = (run.path / "report.html").read_text()
    assert "<svg" in page and all(escape(row.prompt[-1]["content"]) in page for row in sides["trained"])


@given(st.lists(st.from_regex(r"\S(?:[^\n]{0,20}\S)?", fullmatch=True), min_size=2, max_size=6))
def test_the_template_writes_anthropic_s_own_strings(contents: list[str]) -> None:
    """A dialogue that is read from such a string is rendered as that string, with the end token behind the last answer; and the
    prompt is its beginning."""
    from transformers.utils.chat_template_utils import render_jinja_template

    speakers = ("user", "assistant")
    turns = [{"role": speakers[at % 2], "content": text} for at, text in enumerate(contents[: len(contents) // 2 * 2])]
    dialogue = "".join(f"\n\n{'Human' if turn['role'] == 'user' else 'Assistant'}: {turn['content']}" for turn in turns)

    def rendered(of: list[Message], ready: bool) -> str:
        (text,), _ = render_jinja_template([of], chat_template=HH_TEMPLATE, add_generation_prompt=ready, eos_token="<end>")
        return str(text)

    assert hh.turns(dialogue) == turns
    assert rendered(turns, ready=False) == f"{dialogue}<end>"
    assert dialogue == f"{rendered(turns[:-1], ready=True)} {turns[-1]['content']}"


def test_style(
    shipped: Callable[..., Path], run: RunDir, chat_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands at the recipe's top: the run, what such a task needs, the ten answers to read, the pairs as ShareGPT."""
    file, at = str(shipped("style", {"Qwen/Qwen2.5-1.5B-Instruct": chat_model})), str(run.path)
    assert cli.main(["run", file, "--run", at]) == 0
    capsys.readouterr()
    assert cli.main(["plan", file, "--run", at]) == 0
    assert "pairs are few: a narrow task (one style, one format) wants 2,000" in capsys.readouterr().out
    assert cli.main(["export", at, "--format", "text", "--out", str(tmp_path / "answers")]) == 0
    assert cli.main(["export", at, "--format", "llamafactory", "--out", str(tmp_path / "pairs")]) == 0

    groups = {row.prompt_id: row for row in run.stage("sample").rows(Sample)}
    for pair in (made := pairs(run)):
        whole = [one.text for one in groups[pair.prompt_id].completions if one.finish_reason == "stop"]
        assert len(groups[pair.prompt_id].completions) == 10
        assert len(pair.chosen[0]["content"].split()) == min(len(text.split()) for text in whole if text.strip())
    assert made
    pages = sorted((tmp_path / "answers").glob("*/*.txt"))
    assert len(pages) == len(groups)
    page = pages[0].read_text()
    assert "\nQ:\n  Write the reply" in page and all(f"\nA[{at}]:\n" in page for at in range(1, 11))
    (first, *_) = (json.loads(line) for line in (tmp_path / "pairs" / "train.jsonl").read_text().splitlines())
    assert [turn["from"] for turn in first["conversations"]] == ["system", "human"] and first["chosen"]["from"] == "gpt"
    info = json.loads((tmp_path / "pairs" / "dataset_info.json").read_text())
    assert info["train"]["formatting"] == "sharegpt" and info["train"]["ranking"] is True


def chosen_by_people(recipe: Recipe, run: RunDir, argilla: LocalArgilla, dataset: str, taste: Callable[[str], float]) -> None:
    """A run up to where it awaits people; who choose of each two answers the one more to their taste, and let it go on."""
    with pytest.raises(Unfinished, match="await annotation at"):
        pipeline.run(recipe, run)
    desk = Desk(argilla)
    desk.workspace = "dpo-data"
    said = {one.completion_id: one.text for row in run.stage("sample").rows(Sample) for one in row.completions}
    for record in desk.records(dataset):
        tastes = [taste(said[id]) for id in order_of(record)]
        desk.answer(None, record, {"better": f"answer_{1 + tastes.index(max(tastes))}"})
    pipeline.run(recipe, run)


def test_chatbot(shipped: Callable[..., Path], run: RunDir, chat_model: str, argilla: LocalArgilla) -> None:
    recipe = load(shipped("chatbot", {"Qwen/Qwen2.5-1.5B-Instruct": chat_model}), [f"rank.judge.home={argilla.home}"])
    chosen_by_people(recipe, run, argilla, "chatbot-2", len)
    made = pairs(run)
    assert made and all(len(pair.prompt) >= 3 for pair in made), "conversations of several turns"
    assert all(len(chosen) >= len(rejected) for chosen, rejected in map(texts, made))
    assert run.stage("train").require()["answers"] == {"as_sampled": 2 * len(made), "rendered": 0}


def test_moderation(shipped: Callable[..., Path], run: RunDir, argilla: LocalArgilla) -> None:
    recipe = load(shipped("moderation", {}), [f"rank.judge.home={argilla.home}"])
    chosen_by_people(recipe, run, argilla, "moderation-2", lambda text: not text.startswith("Keep"))
    made = pairs(run)
    assert len(made) == 12 and all(pair.prompt[0]["role"] == "system" for pair in made)
    assert not any(texts(pair)[0].startswith("Keep") for pair in made)


def test_recommend(shipped: Callable[..., Path], run: RunDir, chat_model: str) -> None:
    pipeline.run(load(shipped("recommend", {"Qwen/Qwen2.5-0.5B-Instruct": chat_model})), run)
    brought = [json.loads(line) for line in (SHIPPED / "prompts/recommend.jsonl").read_text().splitlines()]
    assert {texts(pair) for pair in pairs(run)} == {(one["chosen"], one["rejected"]) for one in brought}
    trained = run.stage("train").require()
    assert trained["pairs"] + run.stage("pair").require()["test"] == len(brought)
    assert 0 <= trained["held_out"]["rewards/accuracies"] <= 1


def test_ultrafeedback(shipped: Callable[..., Path], run: RunDir, chat_model: str, tmp_path: Path) -> None:
    models = [str(shutil.copytree(chat_model, tmp_path / name)) for name in ("one", "other", "judge")]
    names = ("Qwen/Qwen2.5-1.5B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Qwen/Qwen2.5-7B-Instruct")
    pipeline.run(load(shipped("ultrafeedback", dict(zip(names, models, strict=True)))), run)
    assert run.stage("sample").require()["models"] == {models[0]: 20, models[1]: 20}
    rankings = {row.prompt_id: row for row in run.stage("rank").rows(Ranking)}
    aspects = {"instruction_following", "helpfulness", "truthfulness", "honesty"}
    for ranking in rankings.values():
        marks = [entry["marks"] for entry in json.loads(ranking.transcript)]
        assert len(marks) == 4 and all(one.keys() == aspects for one in marks if one) and any(marks)
    assert pairs(run)
    for pair in pairs(run):
        known = [score for score in rankings[pair.prompt_id].scores if score is not None]
        assert (pair.score_chosen, pair.score_rejected) == (max(known), min(known))


def test_sft_then_dpo(shipped: Callable[..., Path], run: RunDir, gpt2: str) -> None:
    """The second step's policy and reference are the first one's weights: its loss begins at ln 2."""
    pipeline.run(load(shipped("sft-then-dpo", {"openai-community/gpt2": gpt2})), run)
    folder, told = run.stage("train").path, history(run)
    first, then = ([entry[name] for entry in told if name in entry] for name in ("sft/loss", "loss"))
    assert first[-1] < first[0]
    assert then[0] == pytest.approx(math.log(2), abs=1e-4)
    assert (folder / "sft" / "model.safetensors").exists() and (folder / "model" / "adapter_config.json").exists()
