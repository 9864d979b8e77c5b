"""The engines of the sides: who answers the held-out prompts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dpo_data.config import Policy, Recipe
from dpo_data.engines.mix import Mix
from dpo_data.engines.vllm import Vllm


def policies(recipe: Recipe, manifest: Mapping[str, Any], folder: str) -> dict[str, Policy]:
    """Who stands on each side, by `manifest` and `folder` of train, which may be a URL. `base` is the model before all
    training; from the second round on, `last` is the one that sampled this round. An adapter stands on what it was trained on:
    where there was an SFT step, that is the manifest's `base`, a folder beside the model's."""
    assert recipe.train is not None
    policy, lineage, model = recipe.policy(), recipe.lineage, f"{folder}/model"
    found = {"base": policy}
    if lineage and lineage.round > 1:
        first = replace(policy, model=lineage.base, revision=lineage.revision, adapter=lineage.adapter)
        found = {"base": first, "last": policy}
    if recipe.train.method == "full":
        return {**found, "trained": replace(policy, model=model, revision=None, adapter=None)}
    if manifest.get("base"):
        return {**found, "trained": replace(policy, model=f"{folder}/{manifest['base']}", revision=None, adapter=model)}
    return {**found, "trained": replace(policy, adapter=model)}


def engine(recipe: Recipe, policy: Policy) -> Vllm:
    """vLLM with that model, in the form that it was trained on, and with all else as it sampled: of a mix, as the one of its
    engines that has the trained model."""
    sampler, name = recipe.sample.engine, recipe.policy().model
    ours = [one for one in sampler.engines if getattr(one, "model", "") == name] if isinstance(sampler, Mix) else [sampler]
    like = next((one for one in ours if isinstance(one, Vllm)), Vllm(model=name))
    who = {"model": policy.model, "revision": policy.revision, "adapter": policy.adapter}
    return like.model_copy(update={**who, "chat_template": recipe.policy().chat_template})
