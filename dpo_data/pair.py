"""Rankings become chosen/rejected pairs; whatever gives no pair is kept with its reason."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dpo_data import chat_template, filters
from dpo_data.candidates import LENGTH_COLUMNS, RANK_COLUMNS, SAMPLE_COLUMNS, dropped, form, lengths
from dpo_data.config import Recipe
from dpo_data.errors import EmptyStage
from dpo_data.files import read_table
from dpo_data.filters import Trainer
from dpo_data.length_control import TWOS, Control, Measures, control
from dpo_data.models import model_revision
from dpo_data.rows import DroppedPair, PreferencePair, Ranking, batched, in_share
from dpo_data.rundir import RunDir, Stage
from dpo_data.seams import Progress
from dpo_data.stream import in_order
from dpo_data.tables import SCHEMAS, present, schema_of

FLAGS = SCHEMAS[DroppedPair].field("flags")

PROMPTS = 5_000
"""How many prompts are worked on at once."""


class Part(NamedTuple):
    """What some shards gave: tables for the three files, and counts."""

    train: pa.Table
    test: pa.Table
    dropped: pa.Table
    counts: dict[str, int]
    by_prompt: Counter[str]
    by_filter: Counter[str]


def pair(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Write train.parquet, test.parquet and dropped.parquet into `3-pair`. Returns the manifest, with the funnel's counts:
    `prompts`, of which `dropped_prompts` (by filter) gave no pair; the others are `paired` and gave `candidates`, of which
    `dropped_pairs` (by filter) are gone, and the rest is in `train` and `test`; and how `length_control` changed the scores."""
    sampled, ranked = run.stage("sample"), run.stage("rank")
    facts = sampled.require()
    ranked.require()
    stage = run.stage("pair").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    columns, total = present(facts), facts["prompts"]
    pairs = schema_of(PreferencePair, **columns)
    progress("pair", 0, total)
    shards = list(batched(sampled.shards(), max(1, PROMPTS // recipe.sample.shard_size)))
    controlled = _control(recipe, ranked, shards, total, progress) if recipe.pair.length_control else None
    work = _worker(recipe, ranked, pairs, controlled)
    counts: Counter[str] = Counter(dict.fromkeys(("prompts", "paired", "candidates", "train", "test"), 0))
    by_prompt: Counter[str] = Counter()
    by_filter: Counter[str] = Counter()
    files = {"train.parquet": pairs, "test.parquet": pairs, "dropped.parquet": SCHEMAS[DroppedPair]}
    own = any(one and one.type == "python" for one in recipe.pair.filters.values())
    threads = 1 if own else None  # somebody's function may remember what it saw, and sees pairs in their order
    with stage.writers(files) as append:
        for part in in_order(work, shards, threads):
            append["train.parquet"](part.train)
            append["test.parquet"](part.test)
            append["dropped.parquet"](part.dropped)
            counts.update(part.counts)
            by_prompt.update(part.by_prompt)
            by_filter.update(part.by_filter)
            progress("pair", counts["prompts"], total)
        if not counts["train"]:
            most = ", ".join(f"{n} {name}" for name, n in (by_prompt + by_filter).most_common(3))
            raise EmptyStage(
                f"No pair is left of {counts['prompts']} prompts ({most})",
                "Use another judge, more completions, or other [pair.filters].",
            )
    return stage.finish(
        **counts,
        dropped_prompts=dict(by_prompt.most_common()),
        dropped_pairs=dict(by_filter.most_common()),
        **columns,
        length_control=controlled and controlled._asdict(),
    )


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides this stage's rows."""
    return {**recipe.deciding("seed", "pair"), "max_length": recipe.train.max_length if recipe.train else None}


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    hashes = {name: run.stage(name).digest for name in ("sample", "rank")}
    trainer = _trainer(recipe)
    fitted = model_revision(trainer.model, trainer.revision) if trainer else None
    template = chat_template.digest(trainer.chat_template if trainer else None)
    return {**hashes, "trainer": fitted, "chat_template": template, "filters": filters.inputs(recipe.pair.filters)}


def _trainer(recipe: Recipe) -> Trainer | None:
    """What the pairs must fit; None where nothing is trained."""
    if recipe.train is None:
        return None
    policy = recipe.policy()
    return Trainer(policy.model, policy.revision, recipe.train.max_length, policy.chat_template)


def _control(recipe: Recipe, ranked: Stage, shards: list[list[Path]], total: int, progress: Progress) -> Control:
    """What length does to the scores of the whole run: a pass of its own, over lengths and scores alone."""

    def work(some: list[Path]) -> tuple[int, Measures]:
        samples, rankings = _read(some, ranked, LENGTH_COLUMNS)
        return len(samples), lengths(samples, rankings, recipe.pair, TWOS / max(1, total))

    parts, done = [], 0
    for count, part in in_order(work, shards):
        parts.append(part)
        done += count
        progress("pair lengths", done, total)
    return control(parts)


def _worker(recipe: Recipe, ranked: Stage, schema: pa.Schema, controlled: Control | None) -> Callable[[list[Path]], Part]:
    """Turns some shards of samples, with the rankings of the same names, into pairs of this schema and drops."""
    trainer = _trainer(recipe)
    screens = {name: (one, one.build(trainer)) for name, one in recipe.pair.filters.items() if one}

    def work(shards: list[Path]) -> Part:
        samples, rankings = _read(shards, ranked, SAMPLE_COLUMNS)
        formed = form(samples, rankings, recipe.pair, schema, controlled)
        screened = filters.screen(formed.pairs, screens)
        pairs = formed.pairs.set_column(
            formed.pairs.schema.get_field_index("flags"), FLAGS, pa.array(screened.flags, FLAGS.type)
        )
        keep = pa.array([name is None for name in screened.names], pa.bool_())
        names, reasons = ([one for one in told if one is not None] for told in (screened.names, screened.reasons))
        kept = pairs.filter(keep)
        test = pa.array(
            [in_share(id, recipe.pair.test, f"test:{recipe.seed}") for id in kept["prompt_id"].to_pylist()], pa.bool_()
        )
        parts = {"train": kept.filter(pc.invert(test)), "test": kept.filter(test)}
        return Part(
            **parts,
            dropped=pa.concat_tables([formed.drops, dropped(pairs.filter(pc.invert(keep)), names, reasons)]),
            counts={
                "prompts": len(samples),
                "paired": len(samples) - len(formed.drops),
                "candidates": len(formed.pairs),
                **{name: len(one) for name, one in parts.items()},
            },
            by_prompt=Counter(formed.drops["filter"].to_pylist()),
            by_filter=Counter(names),
        )

    return work


def _read(shards: list[Path], ranked: Stage, columns: list[str]) -> tuple[pa.Table, pa.Table]:
    """Those columns of some shards of samples, and the rankings of the same names."""
    judged = [path for shard in shards if (path := ranked.path / shard.name).exists()]
    rankings = [read_table(path, RANK_COLUMNS) for path in judged] or [SCHEMAS[Ranking].empty_table().select(RANK_COLUMNS)]
    return pa.concat_tables([read_table(path, columns) for path in shards]), pa.concat_tables(rankings)
