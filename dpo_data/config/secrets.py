"""No key, token or password stands in a recipe: recipes are kept in run directories, in reports and in Prefect's database."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dpo_data.errors import RecipeError

NAMES = re.compile(
    r"(.*[_-])?(passw(or)?d|passphrase|secret|authorization|(api|secret|access|private|auth|account)[_-]?key)"
    r"|((.*[_-])?(hf|hub|auth|access|bearer|session)[_-])?token",
    re.IGNORECASE,
)
"""Keys under which a text is a secret, whatever it is."""
FORMS = re.compile(
    r"\b(hf_|sk-|gsk_|xai-)[A-Za-z0-9]{16,}|\bsk-(ant|or|proj|svcacct|admin)-[\w-]{16,}|\b(gh[pousr]_|github_pat_|AKIA)\w{16,}"
    r"|\bAIza[\w-]{16,}|(?i:\bBearer\s+(?=\S*\d)[\w.~+/-]{16,}|[?&](api_?key|(access_)?token)=\w)|://[^/\s\"'@]+@"
)
"""A token of known form, or a user, password or key in an address."""
DEEPEST = 40
"""How deep tables and lists may lie in each other: beyond what any recipe needs, and far from where Python gives up."""


def refuse_secrets(table: Mapping[str, Any]) -> None:
    """Raises RecipeError where a text looks like a secret; the error names its key, and does not show it."""
    for place, value in _texts(table):
        if NAMES.fullmatch(place.rpartition(".")[2]) or FORMS.search(value):
            raise RecipeError(
                f"{place!r} looks like a key, token or password, and a recipe is kept and shown where it runs",
                "Leave it out, and set it in the environment: HF_TOKEN, or the variable that key_env names.",
            )


def _texts(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """All texts with their keys. Raises RecipeError where tables lie too deep in each other, and for a number of more than the
    64 bits that TOML has."""
    waiting: list[tuple[str, Any, int]] = [("", table, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise RecipeError(f"{place[:80]!r} lies more than {DEEPEST} tables deep", "Make the recipe flatter.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise RecipeError(f"{place[:80]!r} is a number of more than 64 bits", "Give a smaller one.")
        if isinstance(value, str):
            yield place, value
        elif isinstance(value, Mapping):
            waiting += [(f"{place}.{key}" if place else str(key), one, depth + 1) for key, one in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(place, one, depth + 1) for one in value]
