"""A reward model's logit is an answer's score: in vLLM and in transformers' batches, as in a plain loop of one at a time."""

import json
import logging
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_data import pipeline
from dpo_data.config import Recipe, dump, load, parse
from dpo_data.engines.echo import Echo
from dpo_data.engines.vllm_child import Steps
from dpo_data.errors import EngineError, RecipeError, StaleRun, TemplateError
from dpo_data.judges import reward_child
from dpo_data.judges.reward_model import RewardModel, Scorer
from dpo_data.ledger import Ledger
from dpo_data.rows import Completion, Message, PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.seams import Engine, Request, Settings
from dpo_data.share import SHIPPED

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("quick_vllm")]

FORM = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
CLOSE = 1e-3
"""How near the scores are to a plain loop's, whose own span is several units."""


@pytest.fixture(scope="module")
def model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Makes the folder of a random sequence classifier. `pad`: the config's pad token; "end" is what ends each conversation."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    def make(kind: str = "llama", pad: str = "own", labels: int = 1, template: str | None = FORM, **config: Any) -> str:
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.chat_template = template
        pads = {"none": None, "own": tokenizer.pad_token_id, "end": tokenizer.eos_token_id}
        shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        rest = {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024, "initializer_range": 0.2}
        tokens = {"vocab_size": len(tokenizer), "pad_token_id": pads[pad], "bos_token_id": None}
        torch.manual_seed(0)
        made = AutoConfig.for_model(kind, **{**shape, **rest, **tokens, "num_labels": labels, **config})
        folder = tmp_path_factory.mktemp("models") / f"{kind}-{pad}"
        AutoModelForSequenceClassification.from_config(made).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def folder(model: Callable[..., str]) -> str:
    """One reward model for all that needs no other."""
    return model()


def settings(folder: str, backend: str = "transformers", **more: Any) -> dict[str, Any]:
    """A scorer's table as its child gets it."""
    return {**scorer(folder, backend, **more).model_dump(), "model": folder}


def scorer(folder: str, backend: Any = "transformers", **more: Any) -> Scorer:
    given: dict[str, Any] = {"revision": None, "label": None, "chat_template": None, "args": {}, "batch_tokens": 2048}
    return Scorer(model=folder, backend=backend, **{**given, **more})


def conversations(count: int = 90) -> list[list[Message]]:
    """Of 4 to some 500 tokens, in no order of length."""
    dice = random.Random(7)
    lengths = [1, 1, 480, *(dice.choice([2, 9, 40, 160, 400]) + dice.randrange(60) for _ in range(count - 3))]
    dice.shuffle(lengths)
    texts = ["".join(dice.choices("BCDFGHJKLMNPQRSTVWXZ", k=length)) for length in lengths]
    return [[{"role": "user", "content": "A"}, {"role": "assistant", "content": text}] for text in texts]


def plain(folder: str, chats: Iterable[list[Message]], label: int = 0, **args: Any) -> tuple[list[float], list[int]]:
    """Each conversation by itself through transformers in float32: its logit, and its number of tokens."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **args).eval()
    rows = [tokenizer.apply_chat_template(chat, return_dict=False, return_tensors="pt") for chat in chats]
    with torch.inference_mode():
        return [scorer(row).logits[0, label].item() for row in rows], [row.shape[1] for row in rows]


def message(id: str, chat: list[Message], tools: Any = None) -> dict[str, Any]:
    return {"id": id, "messages": chat, "tools": tools, "seed": 0, "schema": None}


def in_steps(steps: Steps, chats: Iterable[list[Message]]) -> tuple[dict[str, dict[str, Any]], list[int]]:
    """Every conversation through the child's side of a backend: the answers by id, and how many each step gave."""
    refused = [answer for at, chat in enumerate(chats) if (answer := steps.accept(message(str(at), chat)))]
    came, sizes = {answer["id"]: answer for answer in refused}, []
    while steps.live:
        finished = steps.step()
        sizes.append(len(finished))
        came |= {answer["id"]: answer for answer in finished}
    return came, sizes


def scores(engine: Engine, chats: Iterable[list[Message]]) -> dict[str, float | str | None]:
    """Each conversation's score through the engine, or why there is none, by its place."""
    requests = (Request(str(at), chat, 0) for at, chat in enumerate(chats))
    return {one.id: one.outputs[0].score if one.outputs else one.error for one in engine.complete(requests, {})}


@pytest.mark.parametrize("pad", ["none", "own", "end"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_batches_score_as_a_plain_loop(model: Callable[..., str], kind: str, pad: str) -> None:
    made, chats = model(kind, pad), conversations()
    expected, lengths = plain(made, chats)
    assert min(lengths) <= 5 and max(lengths) > 450 and max(expected) - min(expected) > 1
    came, sizes = in_steps(reward_child.load(settings(made)), chats)
    assert max(sizes) > 8 and len(sizes) < len(chats) / 2, "they are batched"
    for at, score in enumerate(expected):
        assert came[str(at)]["outputs"][0]["score"] == pytest.approx(score, abs=CLOSE)
        assert came[str(at)]["n_prompt_tokens"] == lengths[at] and came[str(at)]["error"] is None


def test_a_model_with_positions_of_its_own_and_no_causal_mask(model: Callable[..., str]) -> None:
    """BERT looks both ways, and learns its positions: padding must be masked, and stand on the right."""
    made, chats = model("bert", "own"), conversations(40)
    expected, _ = plain(made, chats)
    came, sizes = in_steps(reward_child.load(settings(made)), chats)
    assert max(sizes) > 4 and max(expected) - min(expected) > 0.1
    assert [came[str(at)]["outputs"][0]["score"] for at in range(40)] == pytest.approx(expected, abs=CLOSE)


def test_attention_scores_that_are_capped(model: Callable[..., str]) -> None:
    """Gemma 2 caps them; transformers' default attention does not, in silence."""
    made, chats = model("gemma2", query_pre_attn_scalar=32), conversations(20)
    expected, _ = plain(made, chats, attn_implementation="eager")
    came, _ = in_steps(reward_child.load(settings(made)), chats)
    assert [came[str(at)]["outputs"][0]["score"] for at in range(20)] == pytest.approx(expected, abs=CLOSE)
    assert plain(made, chats)[0] != pytest.approx(expected, abs=10 * CLOSE), "it shows in these scores"


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 1000))
def test_a_batch_is_the_oldest_and_those_like_it(lengths: list[int], budget: int) -> None:
    waiting = {str(at): length for at, length in enumerate(lengths)}
    batch = reward_child.like_the_oldest(waiting, budget)
    assert batch[0] == "0" and len(set(batch)) == len(batch)
    padded = max(waiting[id] for id in batch) * len(batch)
    assert padded <= budget or len(batch) == 1
    far = max(abs(waiting[id] - lengths[0]) for id in batch)
    assert all(abs(waiting[id] - lengths[0]) >= far for id in waiting if id not in batch), "none that is left out is nearer"
    if len(batch) < len(waiting):
        nearest = min((id for id in waiting if id not in batch), key=lambda id: (abs(waiting[id] - lengths[0]), int(id)))
        assert max(waiting[id] for id in [*batch, nearest]) * (len(batch) + 1) > budget, "it is as full as it can be"


def test_what_the_model_cannot_take_is_told_and_the_others_go_on(folder: str) -> None:
    chats = conversations(6)
    chats[2] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "name " * 1500}]
    came, _ = in_steps(reward_child.load(settings(folder)), chats)
    assert came["2"]["outputs"] == [] and "and the model takes 1,024 here" in came["2"]["error"]
    expected, _ = plain(folder, [chat for at, chat in enumerate(chats) if at != 2])
    others = [came[str(at)]["outputs"][0]["score"] for at in range(6) if at != 2]
    assert others == pytest.approx(expected, abs=CLOSE)


FULL_FORM = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %} calls {{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": [1, 2]}}}


def said(text: str, at: int = 0, calls: Any = None) -> Completion:
    return Completion(f"c{at}", at, text, "stop", 1, None, "m", calls)


def group(*texts: str, id: str = "p", ask: str = "Which river?") -> Sample:
    return Sample(id, [{"role": "user", "content": ask}], "s:1", [said(text, at) for at, text in enumerate(texts)], None)


class Asked:
    """An engine's table, and an engine, that keep what they are asked, and give scores in the reverse order."""

    model = "asked"

    def __init__(self, given: dict[str, float | None] | None = None) -> None:
        self.requests: list[Request] = []
        self._given = given or {}

    def complete(self, requests: Iterable[Request | None], sampling: Any) -> Iterator[Any]:
        from dpo_data.seams import Completed, Output

        live = []
        for request in requests:
            if request is None:
                break
            live.append(request)
        self.requests += live
        for request in reversed(live):
            text = request.messages[-1]["content"]
            score = self._given.get(text, float(len(text)))
            yield Completed(
                request.id, [] if score is None else [Output("", None, score=score)], None if score else "it failed"
            )

    def close(self) -> None: ...


def judged(engine: Any, *groups: Sample) -> dict[str, Ranking]:
    judge = RewardModel(model="m").build(Echo(), 0, lambda table: engine)
    assert judge.name == "reward_model:asked"
    return {ranking.prompt_id: ranking for ranking in judge.rank(iter(groups))}


def test_scores_stand_beside_their_ids_whatever_the_order() -> None:
    engine = Asked()
    found = judged(engine, group("aaa", "b", id="p1"), group("cc", "ddddd", "e", id="p2"))
    assert {id: one.scores for id, one in found.items()} == {"p1": [3.0, 1.0], "p2": [2.0, 5.0, 1.0]}
    assert found["p2"].completion_ids == ["c0", "c1", "c2"] and found["p2"].abstained is None
    assert len(engine.requests) == 5 and found["p1"].transcript == "[]"


def test_what_is_not_scored_is_not_judged_and_says_why() -> None:
    engine = Asked({"bad": None, "nan": float("nan"), "inf": float("inf")})
    found = judged(
        engine, group("fine", "bad", "nan", "inf", "so", id="p1"), group("fine", "bad", id="p2"), group("a", id="p3")
    )
    assert found["p1"].scores == [4.0, None, None, None, 2.0] and found["p1"].abstained is None
    told = json.loads(found["p1"].transcript)
    assert [(one["kind"], one["completion_id"]) for one in told] == [("error", "c1"), ("error", "c2"), ("error", "c3")]
    assert [one["error"] for one in told] == ["it failed", "the score is nan", "the score is inf"]
    assert found["p2"].abstained == "1 of 2 answers could be scored: it failed" and found["p2"].scores == [None, None]
    assert found["p3"].abstained == "fewer than two answers"
    assert json.loads(found["p2"].transcript)[0]["completion_id"] == "c1"


def test_the_whole_conversation_goes_to_the_model_tools_and_calls_too(model: Callable[..., str]) -> None:
    engine = Asked()
    asked = group("no", "yes")
    calling = Sample("p", asked.prompt, "s", [asked.completions[0], said("", 1, [CALL])], None, TOOLS)
    judged(engine, calling)
    no, call = engine.requests
    assert no.messages == [*asked.prompt, {"role": "assistant", "content": "no"}] and no.tools == TOOLS
    assert call.messages[-1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    from transformers import AutoTokenizer

    full = model(template=FULL_FORM)
    made: Any = reward_child.load(settings(full))
    text = AutoTokenizer.from_pretrained(full).decode(made._encode(message("c", call.messages, call.tools)))
    assert text.startswith("Tools: ") and text.endswith('assistant:  calls look({"at": [1, 2]})')


def test_one_bos_at_most(model: Callable[..., str]) -> None:
    once: Any = reward_child.load(settings(model(template="{{ bos_token }}" + FORM)))
    none: Any = reward_child.load(settings(model()))
    chat = message("1", conversations(3)[0])
    assert once._encode(chat) == [1, *none._encode(chat)] and 1 not in none._encode(chat), "<s> is token 1"
    twice = reward_child.load(settings(model(template="{{ bos_token }}{{ bos_token }}" + FORM)))
    refused = twice.accept(message("2", conversations(3)[0]))
    assert refused and "two BOS" in refused["error"] and not twice.live


def test_a_label_must_be_named_where_there_are_several(model: Callable[..., str]) -> None:
    made, chats = model(labels=3), conversations(12)
    with pytest.raises(EngineError, match=r"gives 3 scores \(LABEL_0, LABEL_1, LABEL_2\).*rank\.judge\.label"):
        reward_child.load(settings(made))
    with pytest.raises(EngineError, match="has no label 3: it has 3, counted from 0"):
        reward_child.load(settings(made, label=3))
    came, _ = in_steps(reward_child.load(settings(made, label=2)), chats)
    expected, _ = plain(made, chats, label=2)
    assert [came[str(at)]["outputs"][0]["score"] for at in range(12)] == pytest.approx(expected, abs=CLOSE)
    assert expected != pytest.approx(plain(made, chats, label=1)[0], abs=CLOSE)


def test_a_model_that_generates_is_refused(tiny_model: str) -> None:
    with pytest.raises(EngineError, match=r"is LlamaForCausalLM: it generates text, and gives no score\. Name a reward model"):
        reward_child.load(settings(tiny_model))


def test_a_model_without_its_head_is_refused(folder: str, tmp_path: Path) -> None:
    """transformers makes a random head for it, and says so in a log line alone."""
    from safetensors.torch import load_file, save_file

    headless = shutil.copytree(folder, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"holds no score\.weight: its scores would be random"):
        reward_child.load(settings(str(headless)))


def test_a_chat_template_comes_from_the_model_or_from_a_file(model: Callable[..., str], tmp_path: Path) -> None:
    bare, chats = model(template=None), conversations(5)
    with pytest.raises(EngineError, match=r"has no chat template.*rank\.judge\.template"):
        reward_child.load(settings(bare))
    came, _ = in_steps(reward_child.load(settings(bare, chat_template=FORM)), chats)
    expected, _ = plain(model(template=FORM), chats)
    assert [came[str(at)]["outputs"][0]["score"] for at in range(5)] == pytest.approx(expected, abs=CLOSE)

    file = tmp_path / "form.jinja"
    file.write_text(FORM)
    tables: list[Any] = []
    table = RewardModel(model=bare, template=str(file))
    table.build(Echo(), 0, lambda scorer: tables.append(scorer) or Asked())  # type: ignore[func-returns-value]
    assert tables[0].chat_template == FORM and tables[0].model == bare
    before = table.inputs()
    file.write_text(FORM + " ")
    assert table.inputs() != before
    with pytest.raises(TemplateError, match="No chat template at /no/such"):
        RewardModel(model=bare, template="/no/such.jinja").inputs()


def test_what_decides_the_scores_is_an_input(folder: str, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    table = RewardModel(model=str(copy))
    before = table.inputs()
    assert before == RewardModel(model=folder).inputs() and before["judge_model"].startswith("sha256:")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert table.inputs() != before
    assert table.calls(8) == 8
    fields = type(table).model_fields
    assert table.deciding(*fields) == table.model_copy(update={"batch_tokens": 9}).deciding(*fields)
    assert table.deciding(*fields) != table.model_copy(update={"backend": "vllm"}).deciding(*fields)


def test_arguments_are_of_one_backend() -> None:
    with pytest.raises(RecipeError, match=r"backend = 'auto' may be either.*Set rank\.judge\.backend"):
        RewardModel(model="m", args={"dtype": "float32"})
    assert RewardModel(model="m", backend="vllm", args={"dtype": "float32"}).args


def test_the_shipped_recipe_names_a_reward_model() -> None:
    judge = load(SHIPPED / "flows" / "recipes" / "reward_model.toml").rank.judge
    assert isinstance(judge, RewardModel) and judge.backend == "auto"


class Ranked:
    """A judge of a reward model behind a ledger."""

    def __init__(self, path: Path, table: Settings):
        self.ledger = Ledger(path, "rank")
        self.judge = table.build(Echo(), 0, self.ledger.engine)  # type: ignore[attr-defined]

    def __call__(self, *groups: Sample) -> dict[str, Ranking]:
        with closing(self.ledger), closing(self.judge):
            return {ranking.prompt_id: ranking for ranking in self.judge.rank(iter(groups))}


def test_a_score_that_is_not_a_number_is_not_judged(folder: str, tmp_path: Path) -> None:
    """A token that the model has no finite vector for: the answers with it are not judged, and those of their batch are."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    (tilde,) = AutoTokenizer.from_pretrained(folder).encode("~", add_special_tokens=False)
    weights["model.embed_tokens.weight"][tilde] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    groups = [group("a river", "~", "the long river", id="p1"), group("~", "~~", "a city", id="p2")]
    table = RewardModel(model=str(broken), backend="transformers")
    for _ in range(2):  # the second time from the ledger
        found = Ranked(tmp_path / "calls", table)(*groups)
        assert [score is None for score in found["p1"].scores] == [False, True, False] and not found["p1"].abstained
        assert json.loads(found["p1"].transcript) == [{"kind": "error", "completion_id": "c1", "error": "the score is nan"}]
        assert found["p2"].abstained == "1 of 3 answers could be scored: the score is nan"


def test_the_same_text_gets_the_same_score_and_is_asked_once(folder: str, tmp_path: Path) -> None:
    table = RewardModel(model=folder, backend="transformers")
    ranked = Ranked(tmp_path / "calls", table)
    found = ranked(group("a river", "a city", "a river", id="p1"), group("a river", "a city", id="p2"))
    assert found["p1"].scores[0] == found["p1"].scores[2] != found["p1"].scores[1]
    assert found["p2"].scores == found["p1"].scores[:2]
    spent = Ledger(tmp_path / "calls", "rank").spent()
    assert (spent.calls, spent.completion_tokens) == (2, 0) and spent.prompt_tokens > 0


def test_auto_says_why_it_takes_transformers(model: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setitem(
        sys.modules, "ray", None
    )  # vLLM would import it, for good, and other tests tell it first where to listen
    ctrl = model("ctrl", "own", n_embd=128, n_layer=2, n_head=4, dff=256, n_positions=1024)
    took, chats = reward_child.load(settings(ctrl, "auto")), conversations(6)
    assert took.started["backend"] == "transformers (vLLM has no CTRLForSequenceClassification of its own)"
    came, _ = in_steps(took, chats)
    assert [came[str(at)]["outputs"][0]["score"] for at in range(6)] == pytest.approx(plain(ctrl, chats)[0], abs=CLOSE)
    with pytest.raises(EngineError, match=r"vLLM cannot score with .*CTRL.*Leave rank\.judge\.backend at auto"):
        reward_child.load(settings(ctrl, "vllm"))
    assert reward_child.unsupported(settings(model(), "auto")) is None
    monkeypatch.setattr(reward_child, "find_spec", lambda name: None)
    assert reward_child.load(settings(model(), "auto")).started["backend"] == "transformers (vLLM is not installed)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pad", "backend"), [("llama", "end", "auto"), ("qwen2", "none", "vllm"), ("qwen3", "own", "vllm")]
)
def test_vllm_scores_as_a_plain_loop(
    model: Callable[..., str], kind: str, pad: str, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("vllm")
    caplog.set_level(logging.INFO, "dpo_data")
    made, chats = model(kind, pad), conversations(120)
    expected, lengths = plain(made, chats)
    args = {} if backend == "auto" else {"dtype": "float32", "max_model_len": 300}
    with closing(scorer(made, backend, args=args).build()) as engine:
        found = scores(engine, chats)
    assert f"scoring with {made} in vLLM" in caplog.messages
    assert len(found) == len(chats)
    for at, (score, length) in enumerate(zip(expected, lengths, strict=True)):
        if args and length > 300:
            assert f"{length:,} tokens, and the model takes 300 here" in str(found[str(at)])
        else:
            assert found[str(at)] == pytest.approx(score, abs=CLOSE)
    assert max(lengths) > 300 and (max(expected) > 1 or min(expected) < 0), "no sigmoid gives these"


def test_a_child_that_cannot_start_says_why(folder: str, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineError, match=r"reward_model cannot start with .*SafetensorError") as caught:
        scorer(str(broken)).build()
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=r"gives 2 scores .*Name it with rank\.judge\.label"):
        (broken / "config.json").write_text((broken / "config.json").read_text().replace('"0"', '"1": "bad", "0"', 1))
        config = json.loads((broken / "config.json").read_text())
        config |= {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
        (broken / "config.json").write_text(json.dumps(config))
        scorer(str(broken)).build()


@pytest.fixture
def whole(prompts: Callable[[int], str], folder: str) -> Callable[..., Recipe]:
    """A recipe that samples by echo, and has a reward model rank."""

    def make(count: int, **judge: Any) -> Recipe:
        table = {"type": "reward_model", "model": folder, "backend": "transformers", **judge}
        sample = {"n": 4, "max_tokens": 8, "shard_size": 16, "engine": {"type": "echo"}}
        given: dict[str, Any] = {"prompts": {"path": prompts(count), "near_duplicates": 1.0}, "sample": sample}
        return parse({"name": "whole", **given, "rank": {"judge": table}})

    return make


def test_a_whole_run_prefers_what_the_model_prefers(whole: Callable[..., Recipe], folder: str, tmp_path: Path) -> None:
    recipe, run = whole(40), RunDir(tmp_path / "run")
    told = pipeline.run(recipe, run)
    assert told["name"] == "whole"
    pairs = list(run.stage("pair").rows(PreferencePair, "train.parquet"))
    assert len(pairs) > 25
    chosen, _ = plain(folder, [pair.prompt + pair.chosen for pair in pairs])
    rejected, _ = plain(folder, [pair.prompt + pair.rejected for pair in pairs])
    assert [pair.score_chosen for pair in pairs] == pytest.approx(chosen, abs=CLOSE)
    assert [pair.score_rejected for pair in pairs] == pytest.approx(rejected, abs=CLOSE)
    assert all(good > bad for good, bad in zip(chosen, rejected, strict=True))
    assert {pair.judge for pair in pairs} == {f"reward_model:{folder}"}
    assert f"scoring with {folder} in transformers (the recipe says so)" in (run.path / "logs" / "run.log").read_text()


def test_another_model_in_the_same_folder_is_noticed(whole: Callable[..., Recipe], folder: str, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    recipe, run = whole(4, model=str(own)), RunDir(tmp_path / "run")
    pipeline.run(recipe, run)
    (own / "chat_template.jinja").write_text(FORM + "!")
    with pytest.raises(StaleRun, match="judge_model"):
        pipeline.run(recipe, run)


def kept(path: Path) -> dict[str, float]:
    """The scores in a run's ledger, by their call."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path, timeout=60)) as calls:
        try:
            found = calls.execute("SELECT key, outputs FROM calls").fetchall()
        except sqlite3.OperationalError:  # the table is not made yet
            return {}
    return {key: json.loads(outputs)[0]["score"] for key, outputs in found}


def test_a_run_that_was_killed_scores_nobody_twice(whole: Callable[..., Recipe], tmp_path: Path) -> None:
    """What was kept by the time of kill -9 is marked in the ledger: a second score would take the mark away."""
    recipe, run, file = whole(200, batch_tokens=1), RunDir(tmp_path / "run"), tmp_path / "recipe.toml"
    file.write_text(dump(recipe))
    command = [sys.executable, "-m", "dpo_data.cli", "run", str(file), "--run", str(run.path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(kept(run.calls)) < 60:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = kept(run.calls)
    shards = {path.name: path.read_bytes() for path in run.stage("rank").shards()}
    marked = {key: score + 1000 for key, score in before.items()}
    with closing(sqlite3.connect(run.calls)) as calls:
        for key, score in marked.items():
            output = json.dumps([{"text": "", "finish_reason": None, "score": score}])
            calls.execute("UPDATE calls SET outputs = ? WHERE key = ?", (output, key))
        calls.commit()

    pipeline.run(recipe, run)
    after = kept(run.calls)
    print(f"{len(before)} of {len(after)} scores and {len(shards)} shards outlived SIGKILL")
    assert len(after) > 1.5 * len(before), "it was killed in the middle"
    assert {key: after[key] for key in marked} == marked, "none of them was scored again"
    assert max(score for key, score in after.items() if key not in marked) < 500
    rank = run.stage("rank")
    assert {name: (rank.path / name).read_bytes() for name in shards} == shards
    assert rank.manifest is not None and rank.manifest["calls"]["calls"] == len(after)
    rows = list(run.stage("sample").rows(Sample))
    assert len(after) == len({(row.prompt_id, one.text) for row in rows for one in row.completions}), "nor asked in other words"
    used = {score for one in rank.rows(Ranking) for score in one.scores if score is not None and score > 500}
    assert used, "and the run goes on with them"
    assert sum(len(one.scores) for one in rank.rows(Ranking)) == 800
