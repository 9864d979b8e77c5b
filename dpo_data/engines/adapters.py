"""A LoRA adapter in vLLM: added as the model answers, or merged into its weights where vLLM cannot add any."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from dpo_data.trainer.merge import merge

log = logging.getLogger(__name__)


@contextmanager
def weights(settings: dict[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    """The model to load, its revision, and the adapter to add to it. Merged weights are there until the block ends."""
    model, revision, adapter = (settings[name] for name in ("model", "revision", "adapter"))
    if not adapter or takes_adapters(model, revision, settings["args"].get("trust_remote_code", False)):
        yield model, revision, adapter
        return
    log.info("vLLM has no adapters for the architecture of %s: merging %s into it", model, adapter)
    with TemporaryDirectory(prefix="dpo-data-merged-") as folder:
        merge({"model": model, "revision": revision, "adapter": adapter, "folder": folder})
        yield folder, None, None


def takes_adapters(model: str, revision: str | None, trust_remote_code: bool = False) -> bool:
    """Whether vLLM can add an adapter to a model's architecture, as it can to most; GPT-2's is one to which it cannot."""
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora

    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    known = [ModelRegistry.models[name] for name in config.architectures or [] if name in ModelRegistry.models]
    return all(supports_lora(one.load_model_cls()) for one in known)
