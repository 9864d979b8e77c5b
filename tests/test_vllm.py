"""The real vLLM engine, on this machine's CPU or GPU. An engine takes half a minute to start, so most tests share one."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_child import gone

from dpo_data.child import Child, Parent
from dpo_data.config import dump, parse
from dpo_data.engines import vllm_child
from dpo_data.engines.process import EngineProcess
from dpo_data.engines.vllm import Vllm, VllmEngine
from dpo_data.engines.vllm_child import _Engine
from dpo_data.errors import EngineError, RecipeError
from dpo_data.formats.prompts import read_prompts
from dpo_data.models import model_revision
from dpo_data.rows import Sample, content_id
from dpo_data.rundir import RunDir, Stage
from dpo_data.seams import Completed, Request, answer

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ARGS = {"dtype": "float32", "max_num_seqs": 64}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"why": {"type": "string", "maxLength": 8}, "winner": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["why", "winner"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    """The model's, with a variable of ours in its chat template."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(tiny_model)
    made.chat_template = "{% if style %}Be {{ style }}. {% endif %}" + made.chat_template
    return made


@pytest.fixture(scope="module")
def engine(tiny_model: str, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """With that chat template from a file; without the variable it is the model's own."""
    file = tmp_path_factory.mktemp("templates") / "own.jinja"
    file.write_text(tokenizer.chat_template)
    made = Vllm(model=tiny_model, chat_template=str(file), args=ARGS).build()
    yield made
    made.close()


def ask(text: str, seed: int = 0, id: str = "", schema: dict[str, Any] | None = None, **kwargs: Any) -> Request:
    turns = [{"role": "user", "content": text}]
    return Request(id or f"{text}/{seed}", turns, seed, schema, chat_template_kwargs=kwargs or None)


def questions(count: int) -> list[Request]:
    return [ask(f"Question {at}: name {at + 2} rivers", seed=at * 7919) for at in range(count)]


def answers(engine: VllmEngine, requests: list[Request], **sampling: Any) -> dict[str, Completed]:
    """What comes back, by id, when none comes twice."""
    came = list(engine.complete(iter(requests), {"temperature": 1.0, "max_tokens": 8, **sampling}))
    assert len({one.id for one in came}) == len(came)
    return {one.id: one for one in came}


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_every_request_is_answered_n_times(engine: VllmEngine) -> None:
    came = answers(engine, questions(10), n=3, max_tokens=6)
    assert set(came) == {request.id for request in questions(10)}
    for one in came.values():
        assert one.error is None and len(one.outputs) == 3
        for output in one.outputs:
            assert output.n_tokens is not None and 1 <= output.n_tokens <= 6
            assert output.finish_reason == ("length" if output.n_tokens == 6 else "stop")
            assert output.logprob is not None and output.logprob < 0
    assert len({output.text for one in came.values() for output in one.outputs}) > 25, "the answers to a prompt differ"


def test_requests_are_pulled_as_others_finish(engine: VllmEngine) -> None:
    pulled = 0

    def requests() -> Iterator[Request]:
        nonlocal pulled
        for request in questions(300):
            pulled += 1
            yield request

    ahead = []
    for count, _ in enumerate(engine.complete(requests(), {"n": 4, "max_tokens": 4})):
        ahead.append(pulled - count)
    assert len(ahead) == pulled == 300
    assert max(ahead) == 4 * ARGS["max_num_seqs"] / 4, "four full batches are on the way, and never more"


def test_a_seed_decides_the_answer_whatever_the_order(engine: VllmEngine) -> None:
    forth = answers(engine, questions(60), n=2)
    back = answers(engine, questions(60)[::-1], n=2)
    same = sum([o.text for o in forth[id].outputs] == [o.text for o in back[id].outputs] for id in forth)
    print(f"{same} of 60 groups are the same in another order")
    assert same >= 57, "batched otherwise, rounding may differ, and seldom turns a token"
    seeds = answers(engine, [ask("Name a river", seed) for seed in range(20)])
    assert len({one.outputs[0].text for one in seeds.values()}) > 15


def test_a_prompt_that_is_too_long_fails_alone(engine: VllmEngine) -> None:
    came = answers(engine, [*questions(5), ask("x " * 5000, id="long"), *questions(9)[5:]], n=2)
    assert "4096" in str(came["long"].error) and "\n" not in str(came["long"].error)
    assert [id for id, one in came.items() if one.error or len(one.outputs) != 2] == ["long"]


def test_parameters_of_vllm_pass_through_and_act(engine: VllmEngine) -> None:
    plain = answers(engine, questions(20), max_tokens=40)
    stopped = answers(engine, questions(20), max_tokens=40, stop=["e"], include_stop_str_in_output=True)
    for id, one in stopped.items():
        text = plain[id].outputs[0].text
        assert one.outputs[0].text == text[: text.find("e") + 1] if "e" in text else text
    assert any(one.outputs[0].finish_reason == "stop" for one in stopped.values())
    twins = answers(engine, [ask("Name a river", seed) for seed in range(8)], min_p=1.0)
    assert len({one.outputs[0].text for one in twins.values()}) == 1, "min_p = 1 leaves the likeliest token alone"
    biased = answers(engine, questions(4), logit_bias={"5": 100.0})  # as TOML and JSON write a token's id
    assert {one.outputs[0].text for one in biased.values()} == {biased[questions(4)[0].id].outputs[0].text}
    assert next(iter(biased.values())).error is None
    repeated = answers(engine, questions(20), temperature=0.0, max_tokens=40)
    punished = answers(engine, questions(20), temperature=0.0, max_tokens=40, repetition_penalty=10.0)
    assert repeated != punished


def test_answers_meet_a_schema(engine: VllmEngine) -> None:
    requests = [ask("Which is better?", seed, schema=SCHEMA) for seed in range(64)]
    texts = [one.outputs[0].text for one in answers(engine, requests, max_tokens=64).values()]
    verdicts = [json.loads(text, strict=False) for text in texts]  # xgrammar lets a bare control character into a string
    assert {verdict["winner"] for verdict in verdicts} == {"A", "B", "tie"}
    assert all(len(verdict["why"]) <= 8 for verdict in verdicts)


def prompt_ids(tokenizer: Any, request: Request) -> list[int]:
    kwargs = request.chat_template_kwargs or {}
    ids: list[int] = tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, return_dict=False, **kwargs)
    return ids


def test_token_ids_are_those_of_the_text_and_end_as_the_answer_does(engine: VllmEngine, tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    letters = [id for id in range(len(tokenizer)) if id not in tokenizer.all_special_ids and tokenizer.decode([id]).isascii()]
    only = {"allowed_token_ids": [*letters, end]}  # by chance a byte-level model says bytes that are no text
    came = answers(engine, questions(30), n=3, max_tokens=24, logit_bias={str(end): 3.0}, **only)  # so that some answers end
    outputs = [output for one in came.values() for output in one.outputs]
    ends = [output.finish_reason for output in outputs]
    assert ends.count("stop") > 20 and ends.count("length") > 10
    for output in outputs:
        assert output.token_ids is not None and len(output.token_ids) == output.n_tokens
        assert output.text == tokenizer.decode(output.token_ids, skip_special_tokens=True)
        assert [at for at, id in enumerate(output.token_ids) if id == end] == (
            [len(output.token_ids) - 1] if output.finish_reason == "stop" else []
        )


def test_logprob_is_the_sum_over_the_token_ids_under_the_model_itself(
    engine: VllmEngine, tiny_model: str, tokenizer: Any
) -> None:
    """The prompt as the chat template renders it with its variables, and behind it the tokens as they were sampled."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    bias = {str(tokenizer.eos_token_id): 3.0}  # under what is sampled from, the end is likelier than under the model
    requests = [*questions(12), *(ask(f"Name {at} rivers", at, style="brief") for at in range(12))]
    came = answers(engine, requests, n=2, top_k=50, temperature=2.0, max_tokens=12, logit_bias=bias)
    for request in requests:
        prompt = prompt_ids(tokenizer, request)
        assert came[request.id].n_prompt_tokens == len(prompt)
        for output in came[request.id].outputs:
            assert output.token_ids is not None
            with torch.no_grad():
                logits = model(torch.tensor([prompt + output.token_ids])).logits[0, len(prompt) - 1 : -1]
            total = logits.log_softmax(-1).gather(1, torch.tensor(output.token_ids)[:, None]).sum().item()
            assert output.logprob == pytest.approx(total, abs=1e-4)


def test_variables_change_the_prompt(engine: VllmEngine, tokenizer: Any) -> None:
    requests = [ask("Name a river", id="plain"), ask("Name a river", id="brief", style="brief")]
    came = answers(engine, requests, temperature=0.0)
    lengths = {request.id: len(prompt_ids(tokenizer, request)) for request in requests}
    assert {id: one.n_prompt_tokens for id, one in came.items()} == lengths and lengths["plain"] < lengths["brief"]
    assert came["plain"].outputs[0].text != came["brief"].outputs[0].text


def test_it_tells_how_log_probs_came_about(engine: VllmEngine, tiny_model: str, tokenizer: Any) -> None:
    assert engine.policy == {
        "revision": model_revision(tiny_model),
        "adapter": None,
        "dtype": "float32",
        "quantization": None,
        "template": content_id(tokenizer.chat_template),
        "logprobs": "raw_logprobs",
    }


class WithoutModel(_Engine):
    """The child's side before any request: enough to be asked for sampling parameters."""

    def __init__(self, settings: dict[str, Any]):
        self.max_num_seqs, self.live, self._sampling = 8, 0, {}

    def _policy(self) -> dict[str, Any]:
        return {}


def serve_without_model(parent: Parent) -> None:
    vllm_child._Engine = WithoutModel  # type: ignore[misc]
    vllm_child.serve(parent)


def test_an_unknown_parameter_is_refused_with_the_nearest(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(target: str, logger: str, env: dict[str, str]) -> Child:
        return Child("test_vllm:serve_without_model", logger, {**env, "PYTHONPATH": str(Path(__file__).parent)})

    monkeypatch.setattr("dpo_data.engines.process.Child", start)
    made = Vllm(model=tiny_model).build()
    pids = tree(made._process.child.pid)
    with pytest.raises(RecipeError, match=r"repetition_penalti'.*Did you mean 'repetition_penalty'") as caught:
        answers(made, questions(50), repetition_penalti=1.1)
    assert "\n" not in str(caught.value)
    assert gone(pids)


def test_one_bos_at_most(tiny_model: str) -> None:
    """Where both the template and the tokenizer add a BOS, rendering to text and encoding that would give two."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    message = {"messages": [{"role": "user", "content": "hello"}]}
    child = _Engine.__new__(_Engine)
    child._tokenizer, child._template = tokenizer, None
    without = child._prompt(message)["prompt_token_ids"]
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ bos_token }}" + template
    text = tokenizer.apply_chat_template(message["messages"], add_generation_prompt=True, tokenize=False)
    assert tokenizer(text)["input_ids"][:2] == [bos, bos], "the trap is there"
    ids = child._prompt(message)["prompt_token_ids"]
    assert ids == [bos, *without] and bos not in without
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}" + template
    with pytest.raises(ValueError, match="two BOS"):
        child._prompt(message)


TOOLS_TEMPLATE = (
    "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %} calls {{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_tools_reach_the_chat_template(tiny_model: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TOOLS_TEMPLATE
    tools = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": [1, 2]}}}
    turns = [
        {"role": "user", "content": "where?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "there"},
    ]
    child = _Engine.__new__(_Engine)
    child._tokenizer, child._template = tokenizer, None
    for given in (tools, None):
        ids = child._prompt({"messages": turns, "tools": given})["prompt_token_ids"]
        assert ids == tokenizer.apply_chat_template(turns, tools=given, add_generation_prompt=True, return_dict=False)
        assert ("Tools:" in tokenizer.decode(ids)) == bool(given) and "calls look(" in tokenizer.decode(ids)


class Wire:
    """A child that keeps what it is sent, and answers it."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def receive(self, limit: float) -> dict[str, Any]:
        return {"id": self.sent[-1]["id"], "outputs": [], "error": None}


def test_tools_and_variables_are_sent_to_the_child() -> None:
    made = VllmEngine.__new__(VllmEngine)
    made._process = process = EngineProcess.__new__(EngineProcess)
    process.child, process.started, process._stall = Wire(), {"max_num_seqs": 1}, 1.0  # type: ignore[assignment]
    list(made.complete([Request("a", [], 0, tools=[{"type": "function"}], chat_template_kwargs={"style": "brief"})], {}))
    sent = process.child.sent[1]  # type: ignore[attr-defined]
    assert (sent["tools"], sent["chat_template_kwargs"]) == ([{"type": "function"}], {"style": "brief"})


def test_no_such_model() -> None:
    with pytest.raises(EngineError, match="No model at '/no/such/model'") as caught:
        Vllm(model="/no/such/model").build()
    assert "\n" not in str(caught.value)


def test_a_model_that_vllm_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    before = set(tree(psutil.Process().pid))
    with pytest.raises(EngineError, match="vLLM cannot start with") as caught:
        Vllm(model=str(tmp_path)).build()
    assert "no-such-type" in str(caught.value) and "\n" not in str(caught.value)
    assert gone(list(set(tree(psutil.Process().pid)) - before))


def test_a_model_without_a_chat_template_is_refused_before_the_first_prompt(tiny_model: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.jinja"))
    with pytest.raises(EngineError, match=r"bare has no chat template.*Name a Jinja file with chat_template in the engine's"):
        Vllm(model=str(bare), args=ARGS).build()


def run_cli(recipe: str, run: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dpo_data.cli", "sample", recipe, "--run", str(run), *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def after_shards(process: subprocess.Popen[str], stage: Stage, count: int) -> list[int]:
    """Wait until that many shards are finished, and tell which processes are at it."""
    deadline = time.monotonic() + 300
    while len(stage.shards()) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "no shards"
        time.sleep(0.02)
    return tree(process.pid)


def stamps(stage: Stage) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in stage.shards()}


def test_sampling_that_was_killed_or_interrupted_or_hung_goes_on(
    engine: VllmEngine, tiny_model: str, prompts: Callable[[int], str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    settings = {"type": "vllm", "model": tiny_model, "args": {**ARGS, "max_num_seqs": 32}}
    sample = {"n": 4, "max_tokens": 96, "shard_size": 8, "engine": settings}
    judge = {"type": "rule", "rule": "concise"}
    recipe = parse({"name": "killed", "prompts": {"path": prompts(176)}, "sample": sample, "rank": {"judge": judge}})
    file, run = tmp_path / "recipe.toml", tmp_path / "run"
    file.write_text(dump(recipe))
    stage = RunDir(run).stage("sample")

    killed = run_cli(str(file), run)
    pids = after_shards(killed, stage, 3)
    assert len(pids) > 2, "the engine has processes of its own"
    killed.kill()
    killed.wait()
    assert gone(pids)
    first = stamps(stage)
    assert 3 <= len(first) < 22 and not stage.manifest

    stopped = run_cli(str(file), run)
    pids = after_shards(stopped, stage, len(first) + 3)
    began = time.monotonic()
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=60)
    assert time.monotonic() - began < 5 and stopped.returncode == 130
    assert "go on with `dpo-data sample" in told and "Traceback" not in told
    assert gone(pids)
    second = stamps(stage)

    hung = run_cli(str(file), run, "--set", "sample.engine.stall=20")
    pids = after_shards(hung, stage, len(second) + 1)
    next(psutil.Process(pid) for pid in pids if "EngineCore" in " ".join(psutil.Process(pid).cmdline())).suspend()
    _, told = hung.communicate(timeout=120)
    assert hung.returncode == 4, told
    assert "error: vLLM hangs: no step in 20 s, and " in told and "Run again to go on" in told and "Traceback" not in told
    assert gone(pids)
    kept = stamps(stage)
    assert len(second) < len(kept) < 22

    last = run_cli(str(file), run)
    _, told = last.communicate(timeout=300)
    assert last.returncode == 0, told
    third = stamps(stage)
    assert len(third) == 22 and stage.manifest is not None
    assert first.items() <= second.items() <= kept.items() <= third.items()

    unbroken = {row.prompt_id: row for row in answer(engine, read_prompts(recipe.prompts), recipe.sample.sampling, 0)}
    rows = [row for path in stage.shards() if path.name not in kept for row in stage.rows(Sample, path.name)]
    same = sum([c.text for c in row.completions] == [c.text for c in unbroken[row.prompt_id].completions] for row in rows)
    print(
        f"{len(first)} shards outlived SIGKILL, {len(second)} SIGINT, {len(kept)} a hang; of {len(rows)} prompts, {same} same"
    )
    assert same >= 0.9 * len(rows)
    own = AutoTokenizer.from_pretrained(tiny_model).chat_template
    assert stage.manifest["policy"] == {**engine.policy, "template": content_id(own)}, "of every shard, whoever sampled it"
    assert all(len(c.token_ids or []) == c.n_tokens for row in stage.rows(Sample) for c in row.completions)


@pytest.mark.timeout(240)
def test_an_engine_core_that_dies_ends_the_run_with_its_reason(engine: VllmEngine) -> None:
    """The last of this file: it ends the engine that all share."""
    pids = tree(engine._process.child.pid)
    core = psutil.Process(engine._process.child.pid).children()[-1]
    coming = engine.complete(iter(questions(400)), {"n": 4, "max_tokens": 64})
    next(coming)
    core.kill()
    with pytest.raises(EngineError, match="child process ended") as caught:
        list(coming)
    assert "\n" not in str(caught.value)
    print(caught.value)
    assert gone(pids)
