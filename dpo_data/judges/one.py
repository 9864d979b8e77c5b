"""The judges that hold no judge: any of them judges alone, or is a member of a panel or a cascade."""

from typing import Annotated

from pydantic import Field

from dpo_data.judges.argilla import Argilla
from dpo_data.judges.given import Given
from dpo_data.judges.listwise import Listwise
from dpo_data.judges.pairwise import Pairwise
from dpo_data.judges.reward_model import RewardModel
from dpo_data.judges.rubric import Rubric
from dpo_data.judges.rule import Rule
from dpo_data.judges.terminal import Terminal

BY_TYPE = Field(discriminator="type")
MemberSettings = Annotated[Pairwise | Listwise | Rubric | RewardModel | Rule | Given | Argilla | Terminal, BY_TYPE]
