"""A judge's prompt: a Markdown file with `{{ variables }}`, rendered in a sandbox.

A template names its variables; one that it names and does not get is an error when the judge is built, not a hole in a prompt.
It shows them, and asks `{% if %}` there is one, and does nothing else: it may be anybody's, and what cannot compute can neither
reach out of itself nor take for ever.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2 import Template as Jinja
from jinja2.sandbox import SandboxedEnvironment

from dpo_data.errors import TemplateError
from dpo_data.rows import Message
from dpo_data.share import find

_ENVIRONMENT = SandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=False, trim_blocks=True, lstrip_blocks=True
)

_PLAIN = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const),
    *(nodes.If, nodes.Not, nodes.And, nodes.Or, nodes.Compare, nodes.Operand),
)
"""All that a template may be made of."""


@dataclass(frozen=True)
class Template:
    """The text of a prompt. `hash` is the SHA-256 of its bytes, in hex."""

    path: str
    text: str

    @property
    def hash(self) -> str:
        return text_hash(self.text)

    def render(self, **variables: Any) -> str:
        return self._compiled.render(variables).strip()

    @cached_property
    def _compiled(self) -> Jinja:
        return _ENVIRONMENT.from_string(self.text)


def load_template(path: str, variables: Iterable[str], optional: Iterable[str] = ()) -> Template:
    """Read a template. Raises TemplateError where it is missing, does not parse, computes anything, does not name one of
    `variables`, or names one that is neither of those nor `optional`."""
    text = read_text(path, "template", "prompts/judges/*.md")
    try:
        parsed = _ENVIRONMENT.parse(text)
        _refuse_code(path, parsed)
        _ENVIRONMENT.from_string(text)
    except TemplateSyntaxError as error:
        raise TemplateError(f"{path}, line {error.lineno}: {error.message}", "Mend the template.") from None
    except (SyntaxError, RecursionError):  # of Python's, into which Jinja compiles it
        raise TemplateError(f"{path} lies too deep in itself", "Make it flatter.") from None
    named = meta.find_undeclared_variables(parsed)
    wanted = set(variables)
    known = wanted | set(optional)
    if named - known:
        raise TemplateError(
            f"{path} names {', '.join(sorted(named - known))}, which this judge does not give",
            f"It gives {', '.join(sorted(known))}.",
        )
    if wanted - named:
        raise TemplateError(f"{path} never shows {', '.join(sorted(wanted - named))}", "Without it the judge judges blindly.")
    return Template(path, text)


def _refuse_code(path: str, parsed: nodes.Template) -> None:
    """Raises TemplateError for what is more than a prompt. Before it is compiled: Jinja computes what is constant then."""
    for node in parsed.find_all(nodes.Node):
        if not isinstance(node, _PLAIN) or (isinstance(node, nodes.Name) and node.name == "self"):
            raise TemplateError(
                f"{path}, line {node.lineno}, is more than a prompt: {type(node).__name__}",
                "A template shows its variables, as {{ prompt }}, and may ask {% if … %}; nothing else.",
            )


def read_text(path: str, what: str, shipped: str) -> str:
    """A text file of a judge's: `what` it is, and where the shipped ones are, for the TemplateError if it cannot be read."""
    file = find(path)
    if not file.is_file():
        raise TemplateError(f"No {what} at {path}", f"Name a Markdown file; the shipped ones are {shipped}.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path} is not UTF-8: {error.reason}", "Save it as UTF-8.") from None


def text_hash(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def conversation(messages: Iterable[Message]) -> str:
    """Messages as text for a judge; a single turn is what it says alone."""
    turns = list(messages)
    if len(turns) == 1:
        return said(turns[0]["content"], turns[0].get("tool_calls"))
    return "\n\n".join(f"{turn['role'].capitalize()}: {said(turn['content'], turn.get('tool_calls'))}" for turn in turns)


def said(text: str, tool_calls: Iterable[Mapping[str, Any]] | None = None) -> str:
    """What a turn or an answer says, as text for a judge: its text, then a line a tool call, as `[calls look({"at": 3})]`."""
    calls = [call["function"] for call in tool_calls or []]
    lines = [f"[calls {call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})]" for call in calls]
    return "\n".join([text, *lines] if text or not lines else lines)


_THOUGHT = re.compile(
    r"""(?P<code>```.*?```|`[^`\n]+`)
     |<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)
     |(?P<end></think(?:ing)?>)""",
    re.DOTALL | re.VERBOSE,
)


def without_thinking(text: str) -> str:
    """What an answer says outside of `<think>…</think>`; of one whose thought never ends, what stands before it. A thought
    that has its end alone, because the chat template began it, goes too. Marks within Markdown code are what the answer is
    about, and stay."""
    kept, at = "", 0
    for found in _THOUGHT.finditer(text):
        if not found["code"]:
            kept = "" if found["end"] else kept + text[at : found.start()]
            at = found.end()
    return (kept + text[at:]).strip() if at else text


_MARK = re.compile(r"<(?=\s*/?\s*(?:conversation|answer|reference)\b)", re.IGNORECASE)
"""Where a text could pass for a mark of `fence`."""
_CONTROL = re.compile(
    r"""<(?=[|｜][^<>\s|｜][^<>\s]{0,63}>                                      # <|im_start|>, <｜Assistant｜>, <|turn>
          |\w[^<>\s]{0,63}[|｜]>                                             # <turn|>
          |/?s>|<SYS>>|</SYS>>|(?:bos|eos|pad|unk|mask|sop|eop|unused\d+)>    # <s>, <<SYS>>, <bos>
          |/?think(?:ing)?>|/?tool_(?:call|response)>                         # </think>
          |(?:start|end)_of_(?:turn|image)>|(?:BOS|EOS|PAD|UNK|MASK)_TOKEN>)  # <end_of_turn>, <BOS_TOKEN>
     |\[(?=/?(?:INST|SYSTEM_PROMPT|MODEL_SETTINGS|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|CALL_ID|ARGS|THINK
          |PREFIX|MIDDLE|SUFFIX|IMG(?:_BREAK|_END)?|g?MASK|BOS|EOS|EOT|PAD)\])  # [INST], [gMASK]""",
    re.VERBOSE,
)
"""Where a text could pass for a control token, which a tokenizer would take for the end of the judge's own turn."""


def fence(name: str, text: str) -> str:
    """A text between marks that it cannot set itself. So an answer can neither end before its end, nor begin another one, nor
    speak as the judge's user. `name` begins with conversation, answer or reference."""
    return f"<{name}>\n{neutral(text)}\n</{name}>"


def neutral(text: str) -> str:
    """A text in which what looks like a mark of `fence`, or like a model's control token, has a backslash after its bracket."""
    for pattern in (_MARK, _CONTROL):
        text = pattern.sub(lambda found: found.group() + "\\", text)
    return text


def ask(text: str) -> list[Message]:
    """A judge's prompt as the messages of a request."""
    return [{"role": "user", "content": text}]
