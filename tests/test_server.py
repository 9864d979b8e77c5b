"""The `server` engine: faults on a small server of the test's own, and the real thing on vLLM's own server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, Scripted, said, serving
from usage import free_port

from dpo_data.chat import ChatClient
from dpo_data.engines.server import Server
from dpo_data.errors import EngineError
from dpo_data.judges.pairwise import schema
from dpo_data.seams import Completed, Request


def ask(text: str, **more: Any) -> Request:
    return Request(text, [{"role": "user", "content": text}], 7, **more)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, int], Reply]], tuple[Scripted, Callable[..., ChatClient]]]]:
    with ExitStack() as servers:

        def start(reply: Callable[[str, int], Reply]) -> tuple[Scripted, Callable[..., ChatClient]]:
            script, url = servers.enter_context(serving(reply))
            return script, lambda **settings: Server(base_url=url, model="m", **settings).build()

        yield start


def answers(engine: ChatClient, requests: list[Request], **sampling: Any) -> dict[str, Completed]:
    return {completed.id: completed for completed in engine.complete(iter(requests), sampling)}


def test_sampling_passes_through_as_it_is(serve: Any) -> None:
    script, client = serve(lambda text, before: said("one", "two"))
    found = answers(client(), [ask("q", schema=schema(0))], n=2, top_k=3, min_p=0.1, brand_new=True)
    assert [output.text for output in found["q"].outputs] == ["one", "two"]
    assert [output.n_tokens for output in found["q"].outputs] == [None, None]  # 5 tokens in all: nobody knows whose
    body = script.bodies[0]
    assert {"n": 2, "top_k": 3, "min_p": 0.1, "brand_new": True, "seed": 7, "logprobs": True}.items() <= body.items()
    assert body["response_format"]["json_schema"]["schema"] == schema(0)


TOOLS = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}]


def calling(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "arguments": arguments}}


def test_tools_and_their_calls_go_over_the_wire_as_openai_has_them(serve: Any) -> None:
    script, client = serve(lambda text, before: said("fine"))
    turns = [
        {"role": "user", "content": "where are they?"},
        {"role": "assistant", "content": "", "tool_calls": [calling(at="Höhe"), calling(at=[1, None])]},
        {"role": "tool", "content": "here"},
        {"role": "tool", "content": "there"},
        {"role": "assistant", "content": "one more", "tool_calls": [calling()]},
        {"role": "tool", "content": "42"},
    ]
    given = json.dumps(turns)
    answers(client(), [Request("a", turns, 7, tools=TOOLS, chat_template_kwargs={"enable_thinking": False}), ask("plain")])
    bodies = {body["messages"][0]["content"]: body for body in script.bodies}
    assert "tools" not in bodies["plain"] and bodies["plain"]["messages"] == [{"role": "user", "content": "plain"}]
    sent = bodies["where are they?"]
    assert sent["tools"] == TOOLS and sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in bodies["plain"]
    calls = [call for turn in sent["messages"] for call in turn.get("tool_calls", [])]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"at": "Höhe"}, {"at": [1, None]}, {}]
    ids = [call["id"] for call in calls]
    assert len(set(ids)) == 3 and all(re.fullmatch("[a-z0-9]{9}", id) for id in ids)
    assert [turn["tool_call_id"] for turn in sent["messages"] if turn["role"] == "tool"] == ids
    assert json.dumps(turns) == given, "what is sent is a copy"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [('{"at": "Ulm"}', {"at": "Ulm"}), ("{at: Ulm", "{at: Ulm"), (r'{"at": "\ud83d"}', {"at": "?"})],
    ids=["JSON", "not JSON", "half a pair"],
)
def test_calls_that_come_back_are_kept(serve: Any, text: str, arguments: Any) -> None:
    status, headers, body = said("")
    message = body["choices"][0]["message"]
    message["content"] = None
    message["tool_calls"] = [{"id": "x", "type": "function", "function": {"name": "look", "arguments": text}}]
    _, client = serve(lambda *_: (status, headers, body))
    (output,) = answers(client(), [ask("q", tools=TOOLS)])["q"].outputs
    assert (output.text, output.tool_calls) == (
        "",
        [{"type": "function", "function": {"name": "look", "arguments": arguments}}],
    )
    json.dumps(output.tool_calls, ensure_ascii=False).encode()


def test_busy_and_broken_servers_are_asked_again(serve: Any) -> None:
    def reply(text: str, before: int) -> Reply:
        if text == "busy" and before == 0:
            return 429, {"Retry-After": "0.01"}, {"error": {"message": "slow down"}}
        if text == "broken" and before < 2:
            return 500, {}, {"error": {"message": "oh"}}
        return said("fine")

    script, client = serve(reply)
    found = answers(client(), [ask("busy"), ask("broken"), ask("well")])
    assert {id: completed.outputs[0].text for id, completed in found.items()} == dict.fromkeys(
        ("busy", "broken", "well"), "fine"
    )
    assert script.asked == {"busy": 2, "broken": 3, "well": 1}


def test_a_bad_request_fails_alone(serve: Any) -> None:
    _, client = serve(lambda text, _: (400, {}, {"error": {"message": "too long"}}) if text == "long" else said("fine"))
    found = answers(client(), [ask("a"), ask("long"), ask("b")])
    assert found["long"].outputs == [] and "too long" in str(found["long"].error)
    assert found["a"].outputs[0].text == found["b"].outputs[0].text == "fine"


def test_a_server_that_stays_broken_fails_the_request(serve: Any) -> None:
    script, client = serve(lambda text, _: (503, {"Retry-After": "0.01"}, {"error": {"message": "down"}}))
    assert "down" in str(answers(client(retries=1), [ask("a")])["a"].error)
    assert script.asked["a"] == 2


@pytest.mark.parametrize(("status", "remedy"), [(401, "Set MY_KEY in the environment"), (404, "Mend model or base_url")])
def test_a_wrong_key_or_model_ends_the_run(serve: Any, monkeypatch: pytest.MonkeyPatch, status: int, remedy: str) -> None:
    monkeypatch.setenv("MY_KEY", "sk-canary")
    _, client = serve(lambda text, _: (status, {}, {"error": {"message": "no"}}))
    with pytest.raises(EngineError, match=remedy) as error:
        answers(client(key_env="MY_KEY"), [ask("a")])
    assert "sk-canary" not in str(error.value)


def test_a_server_that_says_when_to_come_again_is_obeyed(serve: Any) -> None:
    """Without the header, the first pause is half a second at most."""
    script, client = serve(lambda text, before: said("fine") if before else (429, {"Retry-After": "1.5"}, {"error": {}}))
    began = time.monotonic()
    assert answers(client(), [ask("a")])["a"].outputs[0].text == "fine"
    assert time.monotonic() - began >= 1.5 and script.asked["a"] == 2


def test_a_server_that_stays_busy_ends_the_run(serve: Any) -> None:
    """It says nothing about a prompt, so no prompt is blamed for it."""
    _, client = serve(lambda text, _: (429, {"Retry-After": "0.01"}, {"error": {"message": "quota used up"}}))
    with pytest.raises(EngineError, match=r"takes no more requests: .*quota used up.*Lower concurrency"):
        answers(client(retries=1), [ask("a")])


def test_tokens_are_told(serve: Any) -> None:
    status, headers, body = said("fine")
    body["usage"]["prompt_tokens_details"] = {"cached_tokens": 2}
    _, client = serve(lambda text, _: (status, headers, body if text == "cached" else said("fine")[2]))
    found = answers(client(), [ask("cached"), ask("plain")])
    assert (found["cached"].n_prompt_tokens, found["cached"].n_cached_tokens) == (3, 2)
    assert (found["plain"].n_prompt_tokens, found["plain"].n_cached_tokens) == (3, None)


def test_a_server_without_structured_output_is_asked_without_a_schema(serve: Any) -> None:
    script, client = serve(lambda text, _: said("fine"))
    answers(client(structured=False), [ask("q", schema=schema(0))])
    answers(client(), [ask("q", schema=schema(0))])
    assert ["response_format" in body for body in script.bodies] == [False, True]


def test_a_server_that_hangs_ends_the_run(serve: Any) -> None:
    _, client = serve(lambda text, _: time.sleep(3) or said("late"))
    with pytest.raises(EngineError, match=r"No answer from http://127\.0\.0\.1"):
        answers(client(timeout=0.2, retries=0), [ask("a")])


def test_an_error_waits_for_no_answer_that_is_on_its_way(serve: Any) -> None:
    begun, enough = threading.Event(), threading.Event()

    def reply(text: str, _: int) -> Reply:
        if text == "slow":
            begun.set()
            enough.wait(60)
            return said("late")
        begun.wait(60)
        return 401, {}, {"error": {"message": "no such key"}}

    script, client = serve(reply)
    try:
        with pytest.raises(EngineError, match="refuses the key"):
            answers(client(retries=0), [ask("slow"), ask("wrong")])
        assert script.now == 1, "the slow one is still being answered"
    finally:
        enough.set()


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(EngineError, match=r"No answer from http://127\.0\.0\.1:9/v1.*Start the server"):
        answers(Server(base_url="http://127.0.0.1:9/v1", model="m", retries=0).build(), [ask("a")])


def test_half_a_surrogate_pair_becomes_text(serve: Any) -> None:
    _, client = serve(lambda text, _: said("x\ud83d"))
    answers(client(), [ask("a")])["a"].outputs[0].text.encode()


def test_no_more_at_once_than_asked_for_and_pulled_lazily(serve: Any) -> None:
    script, client = serve(lambda text, _: time.sleep(0.02) or said(text))
    pulled = 0

    def requests() -> Iterator[Request]:
        nonlocal pulled
        for at in range(40):
            pulled += 1
            yield ask(str(at))

    for number, completed in enumerate(client(concurrency=4).complete(requests(), {})):
        assert completed.outputs[0].text == completed.id
        assert pulled <= number + 1 + 2 * 4
    assert pulled == 40
    assert 2 <= script.most <= 4


@pytest.fixture(scope="module")
def vllm_server(quick_vllm: None, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server on a free port; its base_url."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    flags += ["--no-enable-chunked-prefill", "--max-model-len", "512", "--kv-cache-memory-bytes", str(2**28)]
    flags += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny_model, *flags]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, "VLLM_NO_USAGE_STATS": "1"}
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


@pytest.mark.slow
def test_vllm_s_own_server(vllm_server: str) -> None:
    engine = Server(base_url=vllm_server, model="tiny").build()
    found = answers(engine, [ask(f"What is {at} plus 1?") for at in range(12)], n=3, temperature=1.0, top_k=5, max_tokens=6)
    assert len(found) == 12
    for completed in found.values():
        assert completed.error is None and len(completed.outputs) == 3
        for output in completed.outputs:
            assert output.finish_reason in ("stop", "length")
            assert output.n_tokens is not None and 1 <= output.n_tokens <= 6
            assert output.logprob is not None and output.logprob < 0
    greedy = answers(engine, [ask("Hello", schema=schema(20))], temperature=0.0, max_tokens=256)
    assert json.loads(greedy["Hello"].outputs[0].text)["winner"] in ("A", "B", "tie")
    assert "maximum context length" in str(answers(engine, [ask("x " * 2000)], max_tokens=4)["x " * 2000].error)
    with pytest.raises(EngineError, match="does not know this model or address"):
        answers(Server(base_url=vllm_server, model="other").build(), [ask("a")])
