"""One TOML recipe becomes one frozen, extra-forbidding Recipe.

`[sample]` names what nearly every run sets; any other sampling parameter of the engine goes into `[sample.params]` and any
engine argument into `[sample.engine.args]`, by the engine's own names and passed on as they are. `[train.args]` likewise
reaches TRL.
"""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from dpo_data.engines import SamplerSettings
from dpo_data.engines.mix import Mix
from dpo_data.engines.vllm import Vllm
from dpo_data.errors import RecipeError, TrainError
from dpo_data.explain import explain
from dpo_data.filters import DEFAULTS, Filters
from dpo_data.formats.prompts import Prompts
from dpo_data.judges import JudgeSettings
from dpo_data.judges.members import leaves
from dpo_data.seams import Settings
from dpo_data.share import find

Share = Annotated[float, Field(ge=0, lt=1)]


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


class Rank(Settings):
    """Who ranks. `thinking`: whether judges see what an answer says within `<think>`, which no other table takes away.

    `max_abstained`: the share of prompts that the judge may leave undecided before the run stops. `max_tokens_total` and
    `max_cost`, in the unit of `[prices]`: what this run may spend on its judges before it stops, with what is done kept.
    """

    incidental = frozenset({"max_abstained", "max_tokens_total", "max_cost"})
    judge: JudgeSettings
    thinking: bool = False
    max_abstained: float = Field(0.5, ge=0, le=1)
    max_tokens_total: int | None = Field(None, ge=1)
    max_cost: float | None = Field(None, gt=0)


class Pair(Settings):
    """How rankings become pairs.

    `strategy`: `auto` is best_worst, and from 32 candidates on best_vs_mu_2sigma. `max_pairs` caps adjacent, all and threshold,
    a prompt. `chosen_from` and `rejected_to` are the scores of `threshold`. `test` is the share of prompts whose pairs go to
    test.parquet. `reject_truncated`: whether a cut-off answer may be rejected; it is never chosen.

    `length_control` takes out of the scores what goes with length, over the whole run, before the strategy sees them. True
    quality that goes with length, as of answers that are longer because they are complete, is taken out as well: so it is off.
    """

    strategy: Literal["auto", "best_worst", "best_vs_mu_2sigma", "best_random", "adjacent", "all", "threshold"] = "auto"
    max_pairs: int = Field(10, ge=1)
    chosen_from: float | None = None
    rejected_to: float | None = None
    test: Share = 0.05
    reject_truncated: bool = False
    length_control: bool = False
    filters: Filters = DEFAULTS

    @model_validator(mode="after")
    def _has_thresholds(self) -> "Pair":
        if self.strategy == "threshold" and (self.chosen_from is None or self.rejected_to is None):
            raise ValueError("the strategy threshold needs chosen_from and rejected_to")
        return self


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


class Gates(Settings):
    """What must hold before anything is published or trained on: shares (0–1) of the report's audit, the agreement
    (Kendall's τ-b), and the number of pairs. The agreement is with people on a cascade's calibration slice, else on the
    labelled prompts; without people, that of a cascade's or panel's judges with each other."""

    max_tie_rate: float | None = Field(None, ge=0, le=1)
    max_flip_rate: float | None = Field(None, ge=0, le=1)
    max_abstain_rate: float | None = Field(None, ge=0, le=1)
    min_agreement: float | None = Field(None, ge=-1, le=1)
    min_pairs: int | None = Field(None, ge=1)


class Price(Settings):
    """Money for a million tokens, in whatever unit: read, written, and read from the server's cache (None: as `input`)."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)


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


class Lora(Settings):
    """A LoRA adapter, by peft's own names."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


class Train(Settings):
    """DPO by TRL. What is not named here goes into `args`, TRL's own DPOConfig.

    `model` is what is trained; without it, the model that sampled. `method`: a LoRA adapter, or all weights. `precision`:
    `auto` is bf16 on a GPU and fp32 on a CPU. `max_length`, in tokens of prompt and answer together: without it, what the model
    can take; a longer pair is left out and counted, never cut.
    """

    incidental = frozenset({"save_steps"})
    model: str | None = None
    revision: str | None = None
    method: Literal["lora", "full"] = "lora"
    beta: float = Field(0.1, gt=0)
    learning_rate: float = Field(5e-6, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    max_length: int | None = Field(None, ge=8)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    save_steps: int = Field(50, ge=1)
    lora: Lora = Lora()
    args: dict[str, Any] = {}


class Evaluate(Settings):
    """Base and trained model answer the held-out prompts, and the recipe's judge scores both.

    `thresholds`: a name and a score; reported is the share of answers that reach it, and the first one is the headline. Without
    any, the headline is the share of comparisons won, ties as half.
    """

    n: int = Field(4, ge=1)
    thresholds: dict[str, float] = {}


class Recipe(Settings):
    """Everything that a run depends on. Without `[publish]` nothing leaves this machine; without `[train]` a run ends there.
    `prices` are by the model's name, as an engine's table gives it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
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
    prices: dict[str, Price] = {}

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        """What one table says of another is met before an engine starts."""
        sampler = self.sample.engine.type
        for place, judge in leaves(self.rank.judge, "rank.judge"):
            if sampler in ("mix", "given") and getattr(judge, "engine", judge) is None:
                raise RecipeError(
                    f"The judge {judge.type!r} has no engine of its own, and the {sampler!r} that samples cannot judge",
                    f"Name one model under [{place}.engine].",
                )
            if judge.type == "given" and sampler != "given":
                raise RecipeError(
                    f"The judge 'given' takes the scores that came with given answers, and {sampler!r} generates them",
                    f'Set sample.engine.type = "given", or name another judge at {place}.',
                )
            if judge.type == "given" and self.train and self.prompts.holdout:
                raise RecipeError(
                    "The judge 'given' cannot score what the models answer to held-out prompts",
                    f"Set prompts.holdout = 0, which leaves evaluate out, or name another judge at {place}.",
                )
        if sampler in ("mix", "given") and self.train and not self.train.model:
            raise RecipeError(f"An engine of type {sampler!r} does not say which model to train", "Set train.model.")
        return self

    def base_model(self) -> tuple[str, str | None]:
        """The model to train, with its revision. Raises TrainError where the recipe names none."""
        engine = self.sample.engine
        if self.train and self.train.model:
            return self.train.model, self.train.revision
        if not isinstance(engine, Vllm):
            raise TrainError(f"An engine of type {engine.type!r} names no weights to train", "Set train.model in the recipe.")
        if engine.adapter:
            raise TrainError("The samples come from a model with an adapter", "Merge it, and set train.model in the recipe.")
        return engine.model, engine.revision


def load(path: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe; `changes` are `key.key=value`, values in TOML. Raises RecipeError, naming the key and the nearest one."""
    file = find(str(path))
    if not file.is_file():
        raise RecipeError(f"No recipe at {path}", "Name a .toml file; the shipped ones are flows/recipes/*.toml.")
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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
