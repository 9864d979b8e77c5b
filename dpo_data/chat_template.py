"""A chat template of one's own: a Jinja file that takes the place of the one that comes with a model's tokenizer."""

from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dpo_data.errors import TemplateError
from dpo_data.rows import content_id
from dpo_data.share import find


class _Generation(Extension):
    """Transformers' own tag, `{% generation %}`, around what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = ImmutableSandboxedEnvironment(extensions=[_Generation, "jinja2.ext.loopcontrols"])
"""Knows what transformers' environment knows (`utils/chat_template_utils.py`)."""


def read(path: str) -> str:
    """The Jinja text. Raises TemplateError where there is no such file, where it does not parse, or shows no messages."""
    file = find(path)
    if not file.is_file():
        raise TemplateError(f"No chat template at {path}", "Name a Jinja file, or leave it out for the model's own.")
    try:
        text = file.read_text(encoding="utf-8")
        _ENVIRONMENT.parse(text)
    except UnicodeDecodeError as error:
        raise TemplateError(f"{path} is not UTF-8: {error.reason}", "Save it as UTF-8.") from None
    except TemplateSyntaxError as error:
        raise TemplateError(f"{path}, line {error.lineno}: {error.message}", "Mend the chat template.") from None
    if "messages" not in text:
        raise TemplateError(f"{path} shows no `messages`, so it is no chat template", "Name the Jinja file of one.")
    return text


def digest(path: str | None) -> str | None:
    """The hash of its content, as that of a tokenizer's template; None for None. Raises TemplateError."""
    return None if path is None else content_id(read(path))


def of(engine: Any) -> str | list[Any] | None:
    """The hash of the template that an engine's table names; None where it names none; of a mix, a list of its engines'.
    Raises TemplateError."""
    kind = getattr(engine, "type", None)
    if kind == "mix":
        return [of(one) for one in engine.engines]
    return digest(engine.chat_template) if kind == "vllm" else None
