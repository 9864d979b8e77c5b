"""Several models, each of which answers every prompt."""

from typing import Literal

from pydantic import Field, model_validator

from dpo_data.engines.one import EngineSettings
from dpo_data.errors import RecipeError
from dpo_data.seams import Settings


class Mix(Settings):
    """The engines, which share `[sample] n` evenly. They take turns: one is loaded, answers every prompt and is closed before
    the next is loaded, so that memory holds one model at a time."""

    type: Literal["mix"] = "mix"
    engines: list[EngineSettings] = Field(min_length=2)

    @model_validator(mode="after")
    def _differ(self) -> "Mix":
        twice = [one for at, one in enumerate(self.engines) if one in self.engines[:at]]
        if twice:
            raise RecipeError(f"The mix names an engine of type {twice[0].type!r} twice", "Name each once, and raise sample.n.")
        return self
