"""One TOML recipe becomes one frozen, extra-forbidding Recipe. Each of its tables is a file here.

`[sample]` names what nearly every run sets; any other sampling parameter of the engine goes into `[sample.params]` and any
engine argument into `[sample.engine.args]`, by the engine's own names and passed on as they are. `[train.args]` likewise
reaches TRL.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from dpo_data.config.audit import Audit
from dpo_data.config.evaluate import Evaluate
from dpo_data.config.gates import Gates
from dpo_data.config.pair import Pair
from dpo_data.config.publish import Publish
from dpo_data.config.rank import Price, Rank
from dpo_data.config.rounds import Lineage, Rounds
from dpo_data.config.sample import Sample
from dpo_data.config.secrets import refuse_secrets
from dpo_data.config.train import Lora, Train
from dpo_data.engines.vllm import Vllm
from dpo_data.errors import RecipeError, TrainError
from dpo_data.explain import explain
from dpo_data.formats.prompts import Prompts
from dpo_data.judges.cascade import Cascade
from dpo_data.judges.members import leaves
from dpo_data.seams import Settings
from dpo_data.share import find

__all__ = [
    "Audit", "Evaluate", "Gates", "Lineage", "Lora", "Pair", "Policy", "Price", "Prompts", "Publish", "Rank", "Recipe",
    "Rounds", "Sample", "Train", "dump", "load", "parse",
]  # fmt: skip


LARGEST, DOTS = 2**20, 2_000
"""Bytes of a recipe, and points in a line of it: a dotted key takes `tomllib` the square of its length."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that samples and is trained: a folder or a Hub name, its revision, the folder of an adapter on it, and the file
    of the chat template, where it is not the model's own."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    chat_template: str | None = None


class Recipe(Settings):
    """Everything that a run depends on. Without `[publish]` nothing leaves this machine; without `[train]` a run ends there.
    `prices` are by the model's name, as an engine's table gives it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = 0
    prompts: Prompts
    sample: Sample
    rank: Rank
    pair: Pair = Pair()
    audit: Audit = Audit()
    gates: Gates = Gates()
    publish: Publish | None = None
    train: Train | None = None
    evaluate: Evaluate = Evaluate()
    rounds: Rounds = Rounds()
    lineage: Lineage | None = None
    prices: dict[str, Price] = {}

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, given: Any) -> Any:
        if isinstance(given, dict):
            refuse_secrets(given)
        return given

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        """What one table says of another is met before an engine starts."""
        sampler = self.sample.engine.type
        hands_on = isinstance(self.rank.judge, Cascade) and self.rank.judge.route == "unsure"
        for place, judge in leaves(self.rank.judge, "rank.judge"):
            if sampler in ("mix", "given") and getattr(judge, "engine", judge) is None:
                raise RecipeError(
                    f"The judge {judge.type!r} has no engine of its own, and the {sampler!r} that samples cannot judge",
                    f"Name one model under [{place}.engine].",
                )
            if self.rounds.chained and getattr(judge, "engine", judge) is None:
                raise RecipeError(
                    f"The judge {judge.type!r} has no engine of its own, and what samples is another model in each round",
                    f"Name one model under [{place}.engine], so that all rounds have the same judge.",
                )
            if judge.type == "given" and sampler != "given":
                raise RecipeError(
                    f"The judge 'given' takes the scores that came with given answers, and {sampler!r} generates them",
                    f'Set sample.engine.type = "given", or name another judge at {place}.',
                )
            if judge.type == "given" and not hands_on and self.train and self.prompts.holdout:
                raise RecipeError(
                    "The judge 'given' cannot score what the models answer to held-out prompts",
                    f"Set prompts.holdout = 0, which leaves evaluate out, or name another judge at {place}; a cascade may have "
                    "'given' first, and another judge then.",
                )
        if sampler in ("mix", "given") and self.train and not self.train.model:
            raise RecipeError(f"An engine of type {sampler!r} does not say which model to train", "Set train.model.")
        if self.rounds.chained and not (sampler == "vllm" and self.train and self.prompts.holdout):
            raise RecipeError(
                "[rounds] sample from the model that was trained, as long as held-out prompts show a gain",
                'Set sample.engine.type = "vllm", [train] and prompts.holdout.',
            )
        if self.publish and self.publish.model_repo_id and not self.train:
            raise RecipeError("publish.model_repo_id asks for a trained model, and nothing is trained", "Give it a [train].")
        evaluates = self.train and self.prompts.holdout
        for gate, there, remedy in (
            ("max_chosen_drop", self.train, "[train]"),
            ("max_kl", self.train, "[train]"),
            ("min_win_rate", evaluates, "[train] and prompts.holdout"),
            ("min_parse_rate", evaluates and self.evaluate.must_parse, "evaluate.must_parse, [train] and prompts.holdout"),
            ("max_perplexity_rise", evaluates and self.evaluate.perplexity, "evaluate.perplexity, [train] and prompts.holdout"),
        ):
            if getattr(self.gates, gate) is not None and not there:
                raise RecipeError(f"gates.{gate} could never hold: the recipe does not measure it", f"Set {remedy}.")
        return self

    def policy(self) -> Policy:
        """What is trained: the model that sampled, unless `train.model` names another. Raises TrainError for none."""
        engine = self.sample.engine
        template = (self.train.chat_template if self.train else None) or getattr(engine, "chat_template", None)
        if self.train and self.train.model:
            return Policy(self.train.model, self.train.revision, chat_template=template)
        if not isinstance(engine, Vllm):
            raise TrainError(f"An engine of type {engine.type!r} names no weights to train", "Set train.model in the recipe.")
        return Policy(engine.model, engine.revision, engine.adapter, template)

    def base_model(self) -> tuple[str, str | None]:
        """The weights to train, without an adapter, and their revision. Raises TrainError where the recipe names none."""
        policy = self.policy()
        return policy.model, policy.revision


def load(path: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe; `changes` are `key.key=value`, values in TOML. Raises RecipeError, naming the key and the nearest one."""
    try:
        file = find(str(path))
        if not file.is_file():
            raise RecipeError(f"No recipe at {path}", "Name a .toml file; the shipped ones are flows/recipes/*.toml.")
        if file.stat().st_size > LARGEST:
            raise RecipeError(f"{path} is larger than {LARGEST:,} bytes, so it is no recipe", "Put data into files of its own.")
        text = file.read_text(encoding="utf-8-sig")
        if any(line.count(".") > DOTS for line in text.split("\n")):
            raise RecipeError(f"{path} has a line with more than {DOTS:,} points", "Put long texts into files of their own.")
        table = tomllib.loads(text)
    except OSError as error:
        raise RecipeError(f"{str(path)[:200]} cannot be read: {error.strerror}", "Mend its name or permissions.") from None
    except (ValueError, RuntimeError) as error:  # also of nesting too deep, a home folder of nobody, a number too long
        raise RecipeError(f"{path} is not TOML: {error}", "Mend that line.") from None
    for change in changes:
        _apply(table, change)
    return parse(table, str(path))


def parse(table: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A Recipe from nested tables. Raises RecipeError with the first thing that is wrong."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise RecipeError(*explain(error, Recipe, where)) from None


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, defaults written out."""
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _apply(table: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise RecipeError(f"--set {change!r} has no '='", "Write it as --set sample.n=4.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.strip().split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {change!r} goes into {part!r}, which is no table but {table!r}", "Mend the key.")
    table[last] = value
