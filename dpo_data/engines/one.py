"""The engines that hold one model: any of them samples, judges, or takes part in a mix."""

from typing import Annotated

from pydantic import Field

from dpo_data.engines.echo import Echo
from dpo_data.engines.server import Server
from dpo_data.engines.vllm import Vllm

EngineSettings = Annotated[Vllm | Server | Echo, Field(discriminator="type")]
