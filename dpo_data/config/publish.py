"""The table `[publish]`."""

from typing import Annotated

from pydantic import Field

from dpo_data.seams import Settings


class Publish(Settings):
    """Where the pairs go on the Hugging Face Hub. `revision` is the branch; `tag` names this run's commit, by default as the
    run directory is named. `judgments`: also what the judge was asked and answered. `license` and `language` by the Hub's words
    (apache-2.0, en). Nothing is public unless `private` is off, and a repository that is private stays so."""

    repo_id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    private: bool = True
    revision: str = Field("main", pattern=r"^[\w.-]+(/[\w.-]+)*$")
    tag: str | None = Field(None, pattern=r"^\w[\w.-]*$")
    judgments: bool = False
    license: str = Field("other", pattern=r"^[\w.+-]+$")
    language: list[Annotated[str, Field(pattern=r"^[\w-]+$")]] = []
