"""Who ranks. One file a judge; `type` in the recipe picks it."""

from typing import Annotated

from pydantic import Field

from dpo_data.judges.given import Given
from dpo_data.judges.pairwise import Pairwise
from dpo_data.judges.rule import Rule

JudgeSettings = Annotated[Pairwise | Rule | Given, Field(discriminator="type")]
