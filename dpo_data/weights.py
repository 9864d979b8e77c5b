"""What is published of a trained model, as files: its weights or its adapter, and its tokenizer."""

import re
from contextlib import closing
from pathlib import Path

from dpo_data.child import Child
from dpo_data.config import Recipe
from dpo_data.errors import PublishError
from dpo_data.models import find_model
from dpo_data.rundir import RunDir
from dpo_data.store import is_url

NOT_OURS = ("README.md", "training_args.bin")
"""What TRL leaves beside the weights and is not published: a card of its own; and its arguments, a pickle with paths in it."""

ADAPTER = "adapter_config.json"
"""The file by which a folder is known as an adapter's."""

OWNED = re.compile(
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors|(adapter_)?model\.safetensors\.index\.json"
    r"|(adapter_|generation_|tokenizer_)?config\.json|tokenizer\.(json|model)|(special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|chat_template\.jinja|additional_chat_templates/.+\.jinja|curves\.png"
)
"""The paths of what a push makes. An adapter's that stayed beside merged weights would be loaded on top of them."""


def gather(recipe: Recipe, run: RunDir, folder: Path) -> dict[str, Path]:
    """The model's files by their paths in a repository. Where the recipe asks for merged weights, they are made in `folder`.

    Raises PublishError for an adapter whose base nobody else has, and EngineError where merging fails.
    """
    assert recipe.publish is not None
    trained = run.stage("train").path / "model"
    files = {name: path for name, path in _files(trained).items() if name not in NOT_OURS}
    if ADAPTER not in files:
        return files
    if not recipe.publish.merged:
        require_public_base(recipe)
        return files
    merge(*base(recipe, run), adapter=trained, folder=folder)
    return {name: path for name, path in files.items() if not name.startswith("adapter_")} | _files(folder)


def base(recipe: Recipe, run: RunDir) -> tuple[str, str | None]:
    """The weights that a run's adapter is for, and their revision: those after supervised fine-tuning, where there was one."""
    if tuned := run.stage("train").require().get("base"):
        return str(run.stage("train").path / tuned), None
    model, revision = recipe.base_model()
    return find_model(model, revision), revision


def merge(model: str, revision: str | None, adapter: Path, folder: Path) -> None:
    """Write a model with an adapter in its weights into `folder`. Raises EngineError."""
    with closing(Child("dpo_data.trainer.merge:work", logger="train", env={"TOKENIZERS_PARALLELISM": "false"})) as child:
        child.send({"model": model, "revision": revision, "adapter": str(adapter), "folder": str(folder)})
        child.receive()


def require_public_base(recipe: Recipe) -> None:
    """Raises PublishError where the recipe trains an adapter, and its base is on this machine alone."""
    assert recipe.train is not None
    if recipe.train.method == "full":
        return
    model, _ = recipe.base_model()
    if recipe.train.sft or is_here(model):
        what = "the model after [train.sft]" if recipe.train.sft else model
        raise PublishError(
            f"An adapter serves nobody without its base, and {what} is on this machine alone",
            "Set publish.merged = true, which publishes whole weights.",
        )


def is_here(model: str) -> bool:
    """Whether a model is a folder of this machine or of a store, and no name that others can load it by."""
    return is_url(model) or Path(model).expanduser().exists()


def is_ours(path: str) -> bool:
    """Whether a file of the repository is one that a push makes, and so may delete."""
    return OWNED.fullmatch(path) is not None


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
