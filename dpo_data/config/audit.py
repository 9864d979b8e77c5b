"""The table `[audit]`."""

from pydantic import model_validator

from dpo_data.errors import RecipeError
from dpo_data.seams import Settings


class Audit(Settings):
    """How far the judge can be trusted. `labels`: what people say of a slice, a JSON line each: `prompt_id`, `annotator`, and
    `scores` by completion id (higher is better, equal is a tie). `groups`: annotators by the name of their group, each in no
    more than one; groups whose preferences differ are pointed out, if each has two people who answered the same prompts."""

    labels: str | None = None
    groups: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _in_one_group(self) -> "Audit":
        everyone = [annotator for members in self.groups.values() for annotator in members]
        if twice := next((annotator for annotator in everyone if everyone.count(annotator) > 1), None):
            raise RecipeError(f"audit.groups names the annotator {twice!r} twice", "Name each once, in one group.")
        return self
