"""The table `[publish]`."""

from typing import Annotated

from pydantic import Field, model_validator

from dpo_data.errors import RecipeError
from dpo_data.seams import Settings

Repository = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


class Publish(Settings):
    """Where the pairs (`repo_id`), the trained model (`model_repo_id`) or both go on the Hugging Face Hub.

    `merged`: whole weights in place of a LoRA adapter, which serves only who has its base. `revision` is the branch; `tag`
    names this run's commits, by default as the run directory is named. `judgments`: also what the judge was asked and answered.
    `license`, which is the dataset's, and `language` by the Hub's words (apache-2.0, en). Nothing is public unless `private` is
    off, and a repository that is private stays so."""

    repo_id: Repository | None = None
    model_repo_id: Repository | None = None
    merged: bool = False
    private: bool = True
    revision: str = Field("main", pattern=r"^[\w.-]+(/[\w.-]+)*$")
    tag: str | None = Field(None, pattern=r"^\w[\w.-]*$")
    judgments: bool = False
    license: str = Field("other", pattern=r"^[\w.+-]+$")
    language: list[Annotated[str, Field(pattern=r"^[\w-]+$")]] = []

    @model_validator(mode="after")
    def _names_a_repository(self) -> "Publish":
        if not self.repo_id and not self.model_repo_id:
            raise RecipeError("[publish] names no repository", "Set publish.repo_id, publish.model_repo_id, or both.")
        return self
