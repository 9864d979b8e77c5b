"""The dataset card. The same run gives the same card, byte for byte."""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dpo_data.audit import audit
from dpo_data.audit.warnings import of_all
from dpo_data.card.markdown import codes, render
from dpo_data.card.withheld import nameless, withheld
from dpo_data.config import Recipe, dump
from dpo_data.dataset import CONFIGS, DataFile
from dpo_data.hub import MARK, page
from dpo_data.report import LABELS, facts
from dpo_data.rows import PreferencePair
from dpo_data.rundir import RunDir

LONGEST_TEXT = 1_000
"""Characters of the example row's texts that are shown."""


def dataset_card(recipe: Recipe, run: RunDir, data: Sequence[DataFile], tag: str) -> str:
    """README.md for these files of a run: the Hub's front matter, then Markdown."""
    words, tokens, margins, _ = facts.pairs(run)
    scores, unjudged = facts.scores(run)
    audited = audit(recipe, run)
    sampled = run.stage("sample").require()
    configs = _configs(data)
    return render(
        "dataset.md.j2",
        front=front_matter(recipe, data),
        recipe=recipe,
        recipe_text=withheld(nameless(dump(recipe))),
        tag=tag,
        model=_model(recipe, tag),
        rows={config: _rows(data, config) for config in CONFIGS},
        columns={config: _columns(data, config) for config in configs},
        sampled=sampled,
        revisions=_revisions(sampled["model_revision"]),
        ranked=run.stage("rank").require(),
        judge_inputs=_judge_inputs(run),
        paired=run.stage("pair").require(),
        screened=_screens(recipe),
        funnel=facts.funnel(run),
        labels=defaultdict(str, LABELS),
        lengths={"words": words.summary(), "tokens": tokens.summary()},
        margin=margins.spread(),
        judged=scores.count,
        unjudged=unjudged,
        audit=audited,
        warnings=of_all(audited.annotation) if audited and audited.annotation else [],
        example=_example(run, data),
    )


def front_matter(recipe: Recipe, data: Sequence[DataFile]) -> str:
    """The YAML by which the Hub indexes and loads the dataset, without its dashes."""
    from huggingface_hub import DatasetCardData

    assert recipe.publish is not None
    configs: list[dict[str, Any]] = []
    for config in _configs(data):
        paths = [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in _rows(data, config)]
        configs.append({"config_name": config, **({"default": True} if config == "default" else {}), "data_files": paths})
    written = DatasetCardData(
        language=recipe.publish.language or None,
        license=recipe.publish.license,
        pretty_name=recipe.name,
        size_categories=[size_category(sum(_rows(data, "default").values()))],
        task_categories=["text-generation"],
        tags=["preference", "dpo", MARK],
        configs=configs,
    )
    return str(written.to_yaml()).rstrip()


def size_category(rows: int) -> str:
    """The Hub's word for so many rows."""
    sizes = [0, *(10**power for power in range(3, 13))]
    names = ["n", "1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    at = bisect_right(sizes, rows)
    if at == len(sizes):
        return "n>1T"
    return f"n<{names[at]}" if at == 1 else f"{names[at - 1]}<n<{names[at]}"


def _model(recipe: Recipe, tag: str) -> dict[str, str] | None:
    """The model that goes out with the pairs, and its address; None where there is none."""
    name = recipe.publish and recipe.publish.model_repo_id
    return {"name": name, "url": f"{page('model', name)}/tree/{tag}"} if name else None


def _configs(data: Sequence[DataFile]) -> list[str]:
    return list(dict.fromkeys(one.config for one in data))


def _rows(data: Sequence[DataFile], config: str) -> dict[str, int]:
    """Rows of each split."""
    found: dict[str, int] = {}
    for one in data:
        if one.config == config:
            found[one.split] = found.get(one.split, 0) + one.rows
    return found


def _columns(data: Sequence[DataFile], config: str) -> list[tuple[str, str]]:
    """Names and types of a configuration's columns."""
    schema = next(one.schema for one in data if one.config == config)
    return [(field.name, str(field.type).replace(" not null", "").replace("item: ", "")) for field in schema]


def _revisions(found: str | list[str | None] | None) -> str:
    """The weights of each model, by commit or content hash, as far as they were here."""
    known = [one for one in (found if isinstance(found, list) else [found]) if one]
    return f"weights {codes(known)}" if known else "no weights were here to name a revision of"


def _screens(recipe: Recipe) -> bool:
    """Whether pairs with personal data or secrets were dropped."""
    private = recipe.pair.filters.get("private")
    return bool(private and private.action == "drop")


def _judge_inputs(run: RunDir) -> dict[str, str]:
    """What decided the judge's verdicts besides the recipe: hashes of its template or rule, its model's revision."""
    begun = run.stage("rank").recipe or {"inputs": {}}
    return {name: value for name, value in begun["inputs"].items() if name != "sample" and value}


def _example(run: RunDir, data: Sequence[DataFile]) -> str:
    """The first pair, as JSON, long texts cut."""
    row = asdict(next(run.stage("pair").rows(PreferencePair, "train.parquet")))
    names = {name for name, _ in _columns(data, "default")}
    return json.dumps({name: _cut(value) for name, value in row.items() if name in names}, ensure_ascii=False, indent=2)


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + " …"
    if isinstance(value, list):
        return [_cut(one) for one in value]
    return {name: _cut(one) for name, one in value.items()} if isinstance(value, dict) else value
