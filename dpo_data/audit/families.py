"""Which family a model is of, by its name."""

import re
from collections.abc import Iterable

VENDORS = frozenset({"meta", "google", "openai", "anthropic", "mistralai", "microsoft"})
"""Words before a model's own name: Meta-Llama-3 is a Llama."""

PLAIN = frozenset({"rule", "given", "argilla", "terminal"})
"""Judges that are no model."""


def family(model: str) -> str | None:
    """The first word of a model's name, without organisation and version: `Qwen/Qwen2.5-7B-Instruct` is `qwen`. None where the
    name has no word."""
    words: list[str] = re.findall(r"[a-z]+", model.rstrip("/").rsplit("/", 1)[-1].lower())
    return next((word for word in words if word not in VENDORS), None)


def family_of_judge(name: str) -> str | None:
    """The family of a judge's model; of a panel or cascade, that of all its models. None where there is no one family."""
    models = (part.strip().split(":", 1) for part in re.findall(r"[\w-]+:[^,()]+", name))
    return _one(family(model) for kind, model in models if kind not in PLAIN)


def _one(found: Iterable[str | None]) -> str | None:
    different = set(found)
    return different.pop() if len(different) == 1 else None
