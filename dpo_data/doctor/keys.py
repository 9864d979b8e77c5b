"""Keys: which of them are there. Never what they are."""

import os
from collections.abc import Iterable
from pathlib import Path

from dpo_data.doctor.check import Check

TRACKERS = {"wandb": "WANDB_API_KEY", "comet_ml": "COMET_API_KEY"}
"""The keys of trackers that send what they are told."""

HUB = "HF_TOKEN"


def keys(needed: Iterable[str]) -> list[Check]:
    """A line a key that the recipe needs; without any, one of what is there."""
    checks = [_key(name) for name in needed]
    there = ", ".join(f"{name}: {_where(name) or 'not set'}" for name in (HUB, "OPENAI_API_KEY", "ARGILLA_API_KEY"))
    return checks or [Check("ok", "keys", there)]


def _key(name: str) -> Check:
    where = _where(name)
    if where:
        return Check("ok", "key", f"{name} is {where}")
    todo = "log in with `hf auth login`, or set it" if name == HUB else "set it, or run without it where none is wanted"
    return Check("bad" if name == HUB else "warn", "key", f"{name} is not set: {todo}")


def _where(name: str) -> str | None:
    if os.environ.get(name, "").strip():
        return "set"
    if name == HUB:
        from huggingface_hub import get_token

        return "known from `hf auth login`" if get_token() else None
    known = Path("~/.netrc").expanduser()
    return "in ~/.netrc" if name == TRACKERS["wandb"] and known.is_file() and "wandb" in known.read_text() else None
