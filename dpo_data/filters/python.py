"""Your own filter: a function of a module of yours."""

import importlib
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from dpo_data.errors import RecipeError
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.provenance import file_hash
from dpo_data.rows import PreferencePair
from dpo_data.seams import Filter


class Python(FilterTable):
    """`function`, as `module:function`, is called with a PreferencePair and returns the reason to drop it, or None.

    Whatever else it returns, or raises, ends the run: neither dropping the pair nor keeping it would be what it decided.
    """

    type: Literal["python"] = "python"
    function: str = Field(pattern=r"^[\w.]+:\w+$")

    def build(self, trainer: Trainer | None) -> Screen:
        return Screen(self._reason_by(find_function(self.function)))

    def inputs(self) -> dict[str, str]:
        """The content hash of the file that holds the function."""
        find_function(self.function)
        file = sys.modules[self.function.partition(":")[0]].__file__
        return {self.function: file_hash(Path(file))} if file else {}

    def _reason_by(self, function: Filter) -> Filter:
        def reason(pair: PreferencePair) -> str | None:
            where = f"the pair of prompt {pair.prompt_id}"
            remedy = f"Mend {self.function}, or turn the filter off in [pair.filters]."
            try:
                told = function(pair)
            except Exception as error:  # it is somebody's code, and may fail in any way
                raise RecipeError(
                    f"The filter {self.function} failed on {where}: {type(error).__name__}: {error}", remedy
                ) from error
            if told is not None and (not isinstance(told, str) or not told):
                raise RecipeError(
                    f"The filter {self.function} returned {told!r} for {where}, neither a reason nor None", remedy
                )
            return told

        return reason


def find_function(path: str) -> Filter:
    """The function at `module:function`, modules of the working folder included. Raises RecipeError."""
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Filter = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of somebody's may fail in any way
        raise RecipeError(
            f"The filter {path!r} cannot be imported: {type(error).__name__}: {error}",
            "Run from the folder that holds the module.",
        ) from error
    if not callable(found):
        raise RecipeError(f"The filter {path!r} is {type(found).__name__}, not a function", "Name a function of that module.")
    return found
