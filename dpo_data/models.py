"""Where a model is, and what exactly its name stands for."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpo_data.errors import EngineError
from dpo_data.provenance import hash_once
from dpo_data.store import local


def find_model(model: str, revision: str | None = None) -> str:
    """A model's local folder, or its Hub name once its config has been read from the cache or the Hub. Raises EngineError."""
    folder = local(model)
    if (folder / "config.json").exists():
        return str(folder)
    if folder.exists():
        raise EngineError(f"{folder} holds no config.json, so it is no model", "Name a folder made by save_pretrained.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hf_hub_download(model, "config.json", revision=revision)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise EngineError(
            f"No model at {model!r}: no such folder here, and the Hub says {type(error).__name__}",
            f"Check the name{' (the demo makes its model with `dpo-data demo`)' if 'demo' in model else ''}, log in with "
            "`hf auth login` if it is private, and check the network or HF_HUB_OFFLINE.",
        ) from None
    return model


def find_adapter(adapter: str | None) -> str | None:
    """An adapter's local folder; None for none."""
    return str(local(adapter)) if adapter else None


def model_revision(model: str, revision: str | None = None) -> str | None:
    """A local folder's content hash, or the commit of a Hub repository. Raises EngineError where there is no model.

    The Hub is asked first, so that a model is known by the same commit before and after its first download.
    """
    found = Path(find_model(model, revision))
    if found.is_dir():
        return _folder_hash(found)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def parameters(model: str, revision: str | None = None) -> float | None:
    """About how many parameters a model has, as its config.json tells of a dense transformer; None where that is not on this
    machine, or tells no sizes. Experts count once."""
    config = _config_here(model, revision)
    found = json.loads(config.read_text()) if config else {}
    width = found.get("hidden_size") or found.get("n_embd")
    layers = found.get("num_hidden_layers") or found.get("n_layer")
    if not width or not layers:
        return None
    heads = found.get("num_attention_heads", 1)
    attention = (2 + 2 * found.get("num_key_value_heads", heads) / heads) * width**2
    inner = found.get("intermediate_size")
    feed_forward = 3 * width * inner if inner else 8 * width**2  # three matrices where there is a gate, else two of 4 · width
    tables = 2 if found.get("tie_word_embeddings") is False else 1  # of embeddings
    return float(layers * (attention + feed_forward) + tables * width * found.get("vocab_size", 0))


def _config_here(model: str, revision: str | None) -> Path | None:
    """A model's config.json, in its folder or in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = local(model)
    if folder.is_dir():
        return folder / "config.json" if (folder / "config.json").exists() else None
    with suppress(HFValidationError):  # a folder that is not made yet
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        return Path(cached) if isinstance(cached, str) else None
    return None


def engine_revision(engine: Any) -> str | list[str | None] | None:
    """What exactly an engine's weights are, its adapter's included; None for an engine whose weights are not here; of a mix, a
    list of what each engine's are."""
    if engine is not None and engine.type == "mix":
        return [weights_revision(one) for one in engine.engines]
    return weights_revision(engine)


def weights_revision(engine: Any) -> str | None:
    """What exactly the weights are that an engine or a policy names, its adapter among them; None where it names none."""
    if not hasattr(engine, "revision"):
        return None
    revision, adapter = model_revision(engine.model, engine.revision), getattr(engine, "adapter", None)
    return f"{revision}+{_folder_hash(local(adapter))}" if adapter else revision


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for kind in ("safetensors", "json", "jinja") for file in folder.glob(f"*.{kind}")):
        digest.update(f"{file.name} {hash_once(file)}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"
