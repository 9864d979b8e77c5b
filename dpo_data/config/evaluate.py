"""The table `[evaluate]`."""

import re

from pydantic import Field, field_validator

from dpo_data.errors import RecipeError
from dpo_data.seams import Settings


class Evaluate(Settings):
    """Base and trained model answer the held-out prompts, and the recipe's judge scores both.

    `thresholds`: a name and a score; reported is the share of answers that reach it, and the first one is the headline. Without
    any, the headline is the share of comparisons won, ties as half. `must_parse`: the form that answers must have, "json" or a
    regular expression that the whole answer matches; reported is the share that has it. `perplexity`: a text that has nothing
    to do with the task, to see what training made the model forget: a .txt or .md file, or whatever `prompts.path` may be.
    """

    n: int = Field(4, ge=1)
    thresholds: dict[str, float] = {}
    must_parse: str | None = None
    perplexity: str | None = None

    @field_validator("must_parse")
    @classmethod
    def _is_regular(cls, form: str | None) -> str | None:
        try:
            re.compile(form or "")
        except re.error as error:
            raise RecipeError(
                f"evaluate.must_parse is {form!r}, which is no regular expression: {error}", 'Mend it, or set "json".'
            ) from None
        return form
