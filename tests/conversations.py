"""Conversations, pairs and groups that are hard to write down, made by hypothesis."""

from typing import Any

from hypothesis import strategies as st

from dpo_data.formats.format import Group
from dpo_data.rows import Completion, Message, PreferencePair, Ranking, Sample, completion_ids, prompt_id

FRAGMENTS = [
    '"',
    "\\",
    "\r\n",
    "\r",
    "\n",
    "\u2028",
    "\x85",
    "👋🏽",
    "שלום",
    "مرحبا",
    "\n\nHuman: ",
    "\n\nAssistant: ",
    "best: 1",
    "A[1]:",
]
FRAGMENTS += ["\nQ:", "  ", "\n  ", "{'a': [1]}", '{"role": "user"}', "<|im_end|>", "\t", "\0", "\ufeff", "a", "word"]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=5).map(
    "".join
)
SAID = TEXTS.filter(lambda text: text.strip())
JSONS = st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=2), max_leaves=4)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
        st.sampled_from(["add", "søk", "a.b"]),
        st.dictionaries(TEXTS, JSONS, max_size=2),
    ),
    min_size=1,
    max_size=2,
)
TOOLS = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": st.dictionaries(TEXTS, JSONS, max_size=2)}), min_size=1
)
KWARGS = st.dictionaries(st.sampled_from(["enable_thinking", "style"]), st.booleans() | TEXTS, min_size=1)
SCORES = st.floats(-5, 5).map(lambda score: round(score, 3))


def _turn(role: str, content: str, calls: list[dict[str, Any]] | None = None) -> Message:
    return {"role": role, "content": content, "tool_calls": calls} if calls else {"role": role, "content": content}


@st.composite
def prompts(draw: st.DrawFn, calls: bool, system: bool = True, rounds: int = 2) -> list[Message]:
    """A conversation that awaits an answer: perhaps a system turn, also an empty one, and a few rounds, some with tools."""
    turns = [_turn("system", text) for text in draw(st.lists(TEXTS, max_size=1 if system else 0))]
    for _ in range(draw(st.integers(0, rounds))):
        turns += [_turn("user", draw(SAID)), _turn("assistant", draw(TEXTS))]
        if calls and draw(st.booleans()):
            turns += [_turn("user", draw(SAID)), _turn("assistant", draw(st.just("") | TEXTS), draw(CALLS))]
            turns += [_turn("tool", draw(TEXTS)), _turn("assistant", draw(TEXTS))]
    return [*turns, _turn("user", draw(SAID))]


@st.composite
def pairs(draw: st.DrawFn, tools: bool = True, system: bool = True, kwargs: bool = False) -> PreferencePair:
    """A pair, in one of three with tools, where there may be any; and perhaps with variables of its chat template."""
    calls = draw(st.sampled_from([False, False, tools]))
    messages, schemas = draw(prompts(calls, system)), draw(TOOLS) if calls else None
    answers = [_turn("assistant", draw(TEXTS), draw(st.none() | CALLS) if calls else None) for _ in range(2)]
    variables = draw(st.none() | KWARGS) if kwargs else None
    id = prompt_id(messages, schemas, variables)
    low, high = sorted([draw(SCORES), draw(SCORES)])
    return PreferencePair(
        prompt_id=id, prompt=messages, chosen=answers[:1], rejected=answers[1:], chosen_id="c", rejected_id="r",
        score_chosen=high, score_rejected=low, margin=high - low, n_tokens_chosen=3, n_tokens_rejected=None, judge="j",
        model_chosen="m", model_rejected="n", source="s:1", flags=[], tools=schemas,
        chat_template_kwargs=variables,
    )  # fmt: skip


@st.composite
def groups(draw: st.DrawFn, alone: bool = False) -> Group:
    """A prompt with two to four answers, most of them judged; `alone`: it is one user's turn."""
    messages = draw(prompts(calls=False, system=not alone, rounds=0 if alone else 2))
    texts = draw(st.lists(TEXTS, min_size=2, max_size=4))
    id = prompt_id(messages)
    ids = completion_ids(id, "m", {}, len(texts))
    answers = [Completion(ids[at], at, text, "stop", 3, None, "m") for at, text in enumerate(texts)]
    scores = [draw(st.none() | SCORES) for _ in texts]
    return Group(Sample(id, messages, "s:1", answers, None), Ranking(id, "j", ids, scores, None, "[]"))
