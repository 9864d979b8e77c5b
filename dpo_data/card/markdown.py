"""A card as Markdown.

Texts of recipes, prompts and models are shown as code, in fences and ticks longer than any they hold, so none of them reads as
Markdown or as front matter.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dpo_data.card.withheld import withheld
from dpo_data.numbers import number, percent


def render(template: str, **facts: Any) -> str:
    """A card of this folder's template. Raises UndefinedError for a fact that it names and is not given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters.update(code=code, codes=codes, fenced=fenced, prose=prose, settings=settings, withheld=withheld)
    pages.filters.update(percent=percent, number=number, count=lambda value: f"{value:,}")
    pages.filters.update(cell=cell, json=partial(json.dumps, ensure_ascii=False))
    return pages.get_template(template).render(**facts).rstrip() + "\n"


def code(text: Any) -> str:
    """Text as Markdown's code within a line, whatever it holds."""
    line = " ".join(str(text).split())
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def codes(texts: Iterable[Any]) -> str:
    return ", ".join(map(code, texts))


def cell(markdown: str) -> str:
    """Markdown within a table, where an upright line would end its cell."""
    return markdown.replace("|", "\\|")


def settings(of: Mapping[str, Any]) -> str:
    """Settings as `name = value`, one after the other."""
    return codes(f"{name} = {json.dumps(value)}" for name, value in of.items())


def fenced(text: str, language: str) -> str:
    """Text as a block of code, whatever it holds."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def prose(text: str) -> str:
    """A sentence of ours that may hold names of others, none of which reads as Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", " ".join(text.split()))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
