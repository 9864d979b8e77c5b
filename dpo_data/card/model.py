"""The model card. The same run gives the same card, byte for byte."""

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dpo_data.audit import audit
from dpo_data.card.markdown import render
from dpo_data.card.withheld import nameless, withheld
from dpo_data.config import Recipe, dump
from dpo_data.gates import gates
from dpo_data.hub import MARK, page, patiently
from dpo_data.report import facts
from dpo_data.report.changes import changes
from dpo_data.report.settings import flat
from dpo_data.report.training import marks, training
from dpo_data.rundir import RunDir
from dpo_data.store import local
from dpo_data.weights import ADAPTER, is_here


def model_card(recipe: Recipe, run: RunDir, files: Collection[str], tag: str) -> str:
    """README.md for the model of a run, whose `files` these are: the Hub's front matter, then Markdown."""
    publish = recipe.publish
    assert publish is not None and publish.model_repo_id is not None
    paired, trained, evaluated = (run.stage(name).manifest for name in ("pair", "train", "evaluate"))
    assert paired and trained
    base, revision = _base(recipe, run, trained)
    licence = _licence(base, revision)
    recipe_text = withheld(nameless(dump(recipe)))
    return render(
        "model.md.j2",
        front=front_matter(recipe, files, base, licence),
        recipe=recipe,
        recipe_text=recipe_text,
        name=publish.model_repo_id,
        tag=tag,
        base=base,
        revision=revision,
        base_url=None if is_here(base) else page("model", base),
        adapter=ADAPTER in files,
        licence=licence.get("license_name") or (licence["license"] if licence["license"] != "other" else None),
        data=f"{page('dataset', publish.repo_id)}/tree/{tag}" if publish.repo_id else None,
        sampled=run.stage("sample").require(),
        ranked=run.stage("rank").require(),
        paired=paired,
        trained=trained,
        health=training(run, trained),
        settings=flat(tomllib.loads(recipe_text)["train"]),
        evaluated=evaluated,
        changes=changes(evaluated) if evaluated else [],
        gates=gates(recipe.gates, audit(recipe, run), paired["train"] + paired["test"], trained, evaluated),
    )


def front_matter(recipe: Recipe, files: Collection[str], base: str, licence: dict[str, str]) -> str:
    """The YAML by which the Hub indexes the model, without its dashes."""
    from huggingface_hub import ModelCardData

    assert recipe.publish is not None
    written = ModelCardData(
        base_model=None if is_here(base) else base,
        datasets=[recipe.publish.repo_id] if recipe.publish.repo_id else None,
        language=recipe.publish.language or None,
        library_name="peft" if ADAPTER in files else "transformers",
        pipeline_tag="text-generation",
        tags=["dpo", "trl", "preference", MARK],
        **licence,
    )
    return str(written.to_yaml()).rstrip()


def curves(run: RunDir) -> bytes:
    """The training curves as one picture."""
    from dpo_data.report.plots import curves_png

    return curves_png(facts.history(run), marks(training(run, run.stage("train").require())))


def _base(recipe: Recipe, run: RunDir, trained: dict[str, Any]) -> tuple[str, str | None]:
    """The model that all training began with, and its commit or content hash. Where an earlier round has trained whole weights,
    evaluate has noted it, with its adapter's behind a plus sign; else it is as the recipe names it."""
    lineage = recipe.lineage
    if lineage and lineage.base != trained["model"]:
        begun = run.stage("evaluate").recipe or {"inputs": {}}
        noted: str | None = begun["inputs"].get("base")
        return lineage.base, noted.partition("+")[0] if noted else lineage.revision
    return trained["model"], trained["model_revision"]


def _licence(base: str, revision: str | None) -> dict[str, str]:
    """The base's licence by its own card, as front matter; `other` where it names none. Raises PublishError where the Hub does
    not show the base."""
    from huggingface_hub import HfApi

    if is_here(base):
        found = _front_matter(local(base) / "README.md")
    else:
        told = patiently(f"show {base}", lambda: HfApi().model_info(base, revision=revision), "train.model").card_data
        found = told.to_dict() if told else {}
    named = {key: found[key] for key in ("license", "license_name", "license_link") if isinstance(found.get(key), str)}
    return named if re.fullmatch(r"[\w.+-]+", named.get("license", "")) else {"license": "other"}


def _front_matter(card: Path) -> dict[str, Any]:
    """What a card's head says; nothing where there is none, or where it is no YAML."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        return (metadata_load(card) if card.is_file() else None) or {}
    except (ValueError, YAMLError):  # somebody's card, which nobody checked
        return {}
