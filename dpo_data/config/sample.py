"""The table `[sample]`."""

from typing import Any

from pydantic import Field, model_validator

from dpo_data.config.share import Share
from dpo_data.engines import SamplerSettings
from dpo_data.engines.mix import Mix
from dpo_data.errors import RecipeError
from dpo_data.seams import Settings


class Sample(Settings):
    """N completions a prompt, at fixed settings: of one engine, evenly of a mix, or as many as are given, whatever `n` says.

    `max_failed`: the share of prompts that may fail before the run stops.
    """

    incidental = frozenset({"max_failed"})
    n: int = Field(8, ge=2)
    temperature: float = Field(0.8, ge=0)
    top_k: int = 50
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(256, ge=1)
    params: dict[str, Any] = {}
    shard_size: int = Field(256, ge=1)
    max_failed: Share = 0.05
    engine: SamplerSettings

    @model_validator(mode="after")
    def _divides(self) -> "Sample":
        if isinstance(self.engine, Mix) and self.n % (count := len(self.engine.engines)):
            raise RecipeError(
                f"'sample.n' is {self.n}, which the {count} engines of the mix cannot share evenly",
                f"Make it a multiple of {count}.",
            )
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters as the engine gets them."""
        named = {name: getattr(self, name) for name in ("n", "temperature", "top_k", "top_p", "max_tokens")}
        return {**named, **self.params}
