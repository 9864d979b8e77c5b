"""What answers prompts. One file an engine; `type` in the recipe picks it."""

from typing import Annotated

from pydantic import Field

from dpo_data.engines.echo import Echo
from dpo_data.engines.given import Given
from dpo_data.engines.mix import Mix
from dpo_data.engines.one import EngineSettings
from dpo_data.engines.server import Server
from dpo_data.engines.vllm import Vllm

SamplerSettings = Annotated[Vllm | Server | Echo | Mix | Given, Field(discriminator="type")]

__all__ = ["EngineSettings", "SamplerSettings"]
