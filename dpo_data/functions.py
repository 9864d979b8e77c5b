"""A function of the user's own, named in a recipe as `module:function`."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_data.errors import RecipeError
from dpo_data.provenance import file_hash


def find_function(path: str, kind: str) -> Callable[..., Any]:
    """The function at `module:function`, modules of the working folder included. `kind` is what it serves as, for the error.
    Raises RecipeError."""
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
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
