"""What of a recipe is in no card: secrets, and who annotated."""

import re
import tomllib
from pathlib import Path
from typing import Any

SECRET = re.compile(
    r"""(?P<key>\b\w*(?:token|password|secret|api_key)["']?\s*=\s*)(?:"[^"\n]*"|'[^'\n]*')  # a string under such a key
    | \b(?:hf_|sk-)[\w-]{16,}                                                              # a token of known form
    | (?<=://)[^/\s"'@]+(?=@)                                                              # a user and password in an address
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What of a recipe is withheld from its card."""


def withheld(recipe: str) -> str:
    """A recipe's TOML without what looks like a secret, and without the name of a home folder."""
    home = str(Path.home())
    shown = recipe.replace(f"{home}/", "~/") if home != "/" else recipe
    return SECRET.sub(lambda found: f'{found["key"]}"(withheld)"' if found["key"] else "(withheld)", shown)


def nameless(recipe: str) -> str:
    """A recipe's TOML without the names of annotators, who were asked to rank and not to be named."""
    import tomli_w

    def shown(table: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key in ("annotator", "annotators", "groups"):
                found[key] = _unnamed(value)
            elif isinstance(value, list):
                found[key] = [shown(one) if isinstance(one, dict) else one for one in value]
            else:
                found[key] = shown(value) if isinstance(value, dict) else value
        return found

    return tomli_w.dumps(shown(tomllib.loads(recipe)))


def _unnamed(names: Any) -> Any:
    """As many as there are, under the names of their groups."""
    if isinstance(names, dict):
        return {group: _unnamed(members) for group, members in names.items()}
    return ["(withheld)" for _ in names] if isinstance(names, list) else "(withheld)"
