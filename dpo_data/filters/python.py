"""Your own filter: a function of a module of yours."""

from typing import Literal

from pydantic import Field

from dpo_data.errors import RecipeError
from dpo_data.filters.screen import FilterTable, Screen, Trainer
from dpo_data.functions import find_function, function_hash
from dpo_data.rows import PreferencePair
from dpo_data.seams import Filter


class Python(FilterTable):
    """`function`, as `module:function`, is called with a PreferencePair and returns the reason to drop it, or None.

    Whatever else it returns, or raises, ends the run: neither dropping the pair nor keeping it would be what it decided.
    """

    type: Literal["python"] = "python"
    function: str = Field(pattern=r"^[\w.]+:\w+$")

    def build(self, trainer: Trainer | None) -> Screen:
        return Screen(self._reason_by(find_function(self.function, "filter")))

    def inputs(self) -> dict[str, str]:
        """The content hash of the file that holds the function."""
        hash = function_hash(self.function, "filter")
        return {self.function: hash} if hash else {}

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
