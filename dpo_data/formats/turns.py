"""Conversations and tools as messages, from the two ways in which they are written: {role, content} and {from, value}."""

import json
from typing import Any

from dpo_data.errors import InputError
from dpo_data.formats.values import parsed, plain, short
from dpo_data.rows import Message, TemplateKwargs, Tools

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}
"""ShareGPT's `from`, and the role it stands for."""

OURS = frozenset(
    {
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        "tokenizer_kwargs",
    }
)
"""What transformers' `apply_chat_template` takes beside the template's own variables: whoever renders a prompt sets these."""


def messages(turns: list[Any], where: str) -> list[Message]:
    """A list of turns as messages. Raises InputError."""
    return [message(turn, where) for turn in turns]


def message(turn: Any, where: str) -> Message:
    """One turn as a message. It may be the JSON text of one, as Arrow's JSON type gives it. A content of null is empty beside
    tool calls. Raises InputError."""
    if isinstance(turn, str) and turn.startswith("{"):
        turn = parsed(turn, f"{where}: a turn")
    match turn:
        case {"from": "function_call", "value": str(text)}:
            return {"role": "assistant", "content": "", "tool_calls": tool_calls(parsed(text, f"{where}: a call"), where)}
        case {"from": str(speaker), "value": str(text)}:
            if speaker not in SPEAKERS:
                raise InputError(f"{where}: a turn is from {short(speaker)!r}", f"Known: {', '.join(SPEAKERS)}.")
            return {"role": SPEAKERS[speaker], "content": text}
        case {"role": "assistant", "tool_calls": list() | str() as calls} if calls:
            content = turn.get("content")
            if content is None or isinstance(content, str):
                return {"role": "assistant", "content": content or "", "tool_calls": tool_calls(calls, where)}
        case {"role": str(role), "content": str(content)} if not turn.get("tool_calls"):
            return {"role": role, "content": content}
    raise InputError(f"{where}: a turn is not {{role, content}} with text in both: {short(turn)}", "Mend it.")


def tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as a Message holds them: from one {name, arguments} or a list of them, also as OpenAI writes it, with `function`
    around and arguments as JSON text. Raises InputError."""
    if isinstance(value, str):
        value = parsed(value, f"{where}: tool_calls")
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise InputError(f"{where}: a turn calls no tool", "Give {name, arguments}, or a list of them.")
    return [{"type": "function", "function": _call(call, where)} for call in calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    match call:
        case {"function": {"name": str(name), **rest}} | {"name": str(name), **rest} if name:
            arguments = rest.get("arguments")
            if isinstance(arguments, str) and arguments.strip():
                arguments = parsed(arguments, f"{where}: the arguments of {name}")
            if isinstance(arguments or {}, dict):
                return {"name": name, "arguments": plain(arguments or {}, f"{where}: the arguments of {name}")}
    raise InputError(f"{where}: a call is not {{name, arguments}} with an object as arguments: {short(call)}", "Mend it.")


def tools(value: Any, where: str) -> Tools | None:
    """A `tools` column: a list of JSON schemas, or the JSON text of one, or nothing. Raises InputError."""
    if isinstance(value, str):
        value = parsed(value, f"{where}: tools") if value.strip() else None
    if value is None or value == []:
        return None
    schemas = value if isinstance(value, list) else [value]
    schemas = [parsed(one, f"{where}: tools") if isinstance(one, str) else one for one in schemas]
    if not all(isinstance(one, dict) and one for one in schemas):
        raise InputError(f"{where}: tools is {short(value)}, not a list of JSON schemas", "Mend it.")
    found: Tools = plain(schemas, f"{where}: tools")
    return found


def template_kwargs(value: Any, where: str) -> TemplateKwargs | None:
    """A chat template's own variables: an object, or the JSON text of one, or nothing. One of null is not there: in a Parquet
    file every row has the keys of all. Raises InputError."""
    if isinstance(value, str):
        value = parsed(value, where) if value.strip() else None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError(f"{where} is {short(value)}, not an object", "Give {name: value}, as the chat template names them.")
    found: TemplateKwargs = plain({name: one for name, one in value.items() if one is not None}, where)
    if taken := OURS.intersection(found):
        raise InputError(f"{where} sets {min(taken)!r}, which is no variable of a chat template", "Leave it out.")
    return found or None


def sharegpt(turn: Message) -> dict[str, str]:
    """A message as ShareGPT's {from, value}; its calls as one {name, arguments}, or a list of several."""
    if turn.get("tool_calls"):
        calls = [call["function"] for call in turn["tool_calls"]]
        return {"from": "function_call", "value": dumped(calls[0] if len(calls) == 1 else calls)}
    speakers = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    return {"from": speakers[turn["role"]], "value": turn["content"]}


def dumped(value: Any) -> str:
    """A value as JSON text, with letters of every script as they are."""
    return json.dumps(value, ensure_ascii=False)
