"""A function of the user's own, named in a recipe as `module:function`, and whether a recipe may run code at all.

A recipe is data, and may be anybody's. What it names as code is imported only where whoever runs it has allowed that, for a
command by `--allow-code`, else by DPO_DATA_ALLOW_CODE=1 in the environment, which child processes and a worker's flow runs
inherit. The working folder is no exception: a stranger's recipe may have come with modules beside it.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_data.errors import RecipeError
from dpo_data.provenance import file_hash

ALLOW = "DPO_DATA_ALLOW_CODE"
"""The variable of the environment that allows code where it is 1."""

OWN = frozenset({"dpo_data.demo.questions:concise_and_correct"})
"""The functions that shipped recipes name. They need no permission; others of ours do, for some run what they are given."""

LOADS_CODE = re.compile(
    r"trust_remote_code|use_kernels|logits_processors|log_config_file|inductor_passes|(\w+_)?module_path"
    r"|\w+_(cls|plugin|class_overrides)"
)
"""The arguments of vLLM and transformers by which they import what is named there, whatever it is."""
MAY_LOAD_CODE = re.compile(r"attn_implementation|\w*backend")
"""Those that name something of the library's own, or, as a dotted name or a repository of the Hub's, something to import."""
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
"""A class, as vLLM takes it for the model that speculates."""


def require_allowed(what: str) -> None:
    """Raises RecipeError unless code is allowed. `what` is a clause that says what would be run, for the error."""
    if os.environ.get(ALLOW) != "1":
        raise RecipeError(
            f"{what}, and this run is allowed none",
            f"Read it first; then add --allow-code to the command, or set {ALLOW}=1 where flows run.",
        )


def loads_code(table: Any) -> Iterator[str]:
    """The keys within a recipe's `args` and `params`, at any depth, by which a library would import code. A text there that is
    JSON is a table too, as transformers reads it."""
    waiting: list[tuple[str, Any, bool]] = [("", table, False)]
    while waiting:
        place, value, passed_on = waiting.pop()
        if passed_on and isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            try:
                value = json.loads(value)
            except ValueError:
                continue
            except RecursionError:  # whoever has more room may read it
                yield place
        if isinstance(value, Mapping):
            for key, one in value.items():
                where = f"{place}.{key}" if place else str(key)
                if passed_on and _imports(place, str(key), one):
                    yield where
                else:
                    waiting.append((where, one, passed_on or key in ("args", "params")))
        elif isinstance(value, list | tuple):
            waiting += [(place, one, passed_on) for one in value]


def find_function(path: str, kind: str) -> Callable[..., Any]:
    """The function at `module:function`, modules of the working folder included, from which on all else is looked for there
    too: so nothing of ours puts it on the path. `kind` is what the function serves as, for the error. Raises RecipeError, and
    imports nothing, where code is not allowed."""
    if path not in OWN:
        require_allowed(f"The {kind} {path!r} is code")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of somebody's may fail in any way
        raise RecipeError(
            f"The {kind} {path!r} cannot be imported: {type(error).__name__}: {error}",
            "Run from the folder that holds the module.",
        ) from error
    if not callable(found):
        raise RecipeError(f"The {kind} {path!r} is {type(found).__name__}, not a function", "Name a function of that module.")
    return found


def function_hash(path: str, kind: str) -> str | None:
    """The content hash of the file that holds the function; None for one that is in no file. Raises RecipeError."""
    find_function(path, kind)
    file = sys.modules[path.partition(":")[0]].__file__
    return file_hash(Path(file)) if file else None


def _imports(place: str, key: str, value: Any) -> bool:
    if LOADS_CODE.fullmatch(key):
        return bool(value)
    if place.endswith("speculative_config") and key in ("method", "model"):
        return value == "custom_class" or (key == "model" and bool(DOTTED.fullmatch(str(value))))
    return bool(MAY_LOAD_CODE.fullmatch(key)) and isinstance(value, str) and bool(re.search("[./:]", value))
