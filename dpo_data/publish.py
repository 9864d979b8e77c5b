"""The pairs, the trained model or both go to the Hugging Face Hub, each as one tagged commit, with a card on how it was made.

Nothing is public unless the recipe asks for it. A push that broke off is made again: what the Hub has stored is not sent twice,
and what is committed is not committed twice. The token is in no file and no log.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpo_data import dataset, weights
from dpo_data.card.dataset import dataset_card
from dpo_data.card.model import curves, model_card
from dpo_data.config import Publish, Recipe
from dpo_data.errors import PublishError
from dpo_data.hub import Kind, Repo, open_repo, require_token
from dpo_data.provenance import file_hash
from dpo_data.rundir import RunDir
from dpo_data.seams import Progress

log = logging.getLogger(__name__)

CARDS: dict[Kind, str] = {"dataset": "README.md", "model": "model.md"}
"""What a card is called in `6-publish`."""


@dataclass(frozen=True, slots=True)
class Content:
    """What one repository is given: its card, the other files by their paths there, and what the manifest tells of these.
    `owned` says whether a file that is there already is one that a push makes, and so may delete."""

    card: str
    files: dict[str, Path]
    owned: Callable[[str], bool]
    pushed: list[dict[str, Any]]


def publish(recipe: Recipe, run: RunDir, progress: Progress) -> dict[str, Any]:
    """Push what the recipe names a repository for, and keep the cards in `6-publish`. Returns the manifest: the dataset's
    commit, tag and files, and the same of the model under `model`.

    All repositories are there and all cards are written before the first commit.
    """
    wanted = _asked(recipe)
    for before in _read(recipe):
        run.stage(before).require()
    stage = run.stage("publish").open(settings(recipe), inputs(recipe, run))
    if stage.manifest:
        return stage.manifest
    ready(recipe)
    tag = wanted.tag or tag_of(run) or recipe.name
    if tag == wanted.revision:
        raise PublishError(f"{tag!r} is the branch and cannot be the tag too", "Name a publish.tag.")
    repos = [open_repo(kind, name, wanted.revision, wanted.private) for kind, name in _repositories(wanted)]
    told: dict[Kind, dict[str, Any]] = {}
    with TemporaryDirectory(dir=stage.path, prefix=".", suffix=".tmp") as folder:
        contents = {repo.kind: CONTENT[repo.kind](recipe, run, Path(folder), tag) for repo in repos}
        for repo in repos:
            told[repo.kind] = _push(repo, contents[repo.kind], Path(folder), tag, recipe.name, progress)
    for kind, content in contents.items():
        stage.write_text(CARDS[kind], content.card)
    return stage.finish(**told.get("dataset", {}), model=told.get("model"), urls=[pushed["url"] for pushed in told.values()])


def settings(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides what is published, and where."""
    return recipe.deciding("publish")


def inputs(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    """Content hashes of what this stage reads."""
    return {name: run.stage(name).digest for name in _read(recipe)}


def ready(recipe: Recipe) -> None:
    """Raises PublishError where a push could not begin: nobody is logged in, or an adapter's base is on this machine alone."""
    require_token()
    wanted = _asked(recipe)
    if wanted.model_repo_id and not wanted.merged:
        weights.require_public_base(recipe)


def tag_of(run: RunDir) -> str:
    """The tag of a run that names none: its directory's name, as git takes it."""
    return re.sub(r"[^\w.-]+", "-", run.path.resolve().name).strip(".-")


def _push(repo: Repo, content: Content, folder: Path, tag: str, name: str, progress: Progress) -> dict[str, Any]:
    """One repository's commit and tag, as the manifest tells of it."""
    readme = folder / CARDS[repo.kind]
    readme.write_text(content.card, encoding="utf-8")
    files = {"README.md": readme, **content.files}
    what = f"publish {repo.kind}"
    progress(what, 0, len(files))
    commit = repo.push(files, content.owned, tag, f"{name}: {tag}", lambda done: progress(what, done, len(files)))
    progress(what, len(files), len(files))
    url = f"{repo.url}/tree/{tag}"
    log.info("published: %s, commit %s", url, commit)
    where = {"repo_id": repo.repo_id, "private": repo.private, "revision": repo.revision}
    return {**where, "tag": tag, "commit": commit, "url": url, "pushed": content.pushed}


def _dataset(recipe: Recipe, run: RunDir, folder: Path, tag: str) -> Content:
    data = dataset.gather(run, folder, _asked(recipe).judgments)
    pushed = [{"path": one.path, "rows": one.rows, "sha256": file_hash(one.file)} for one in data]
    return Content(dataset_card(recipe, run, data, tag), {one.path: one.file for one in data}, dataset.is_ours, pushed)


def _model(recipe: Recipe, run: RunDir, folder: Path, tag: str) -> Content:
    files = weights.gather(recipe, run, folder / "merged")
    plot = folder / "curves.png"
    plot.write_bytes(curves(run))
    files["curves.png"] = plot
    pushed = [{"path": path, "bytes": file.stat().st_size, "sha256": file_hash(file)} for path, file in files.items()]
    return Content(model_card(recipe, run, files, tag), files, weights.is_ours, pushed)


CONTENT: dict[Kind, Callable[[Recipe, RunDir, Path, str], Content]] = {"dataset": _dataset, "model": _model}
"""What goes into a repository, by its kind."""


def _repositories(wanted: Publish) -> list[tuple[Kind, str]]:
    names: dict[Kind, str | None] = {"dataset": wanted.repo_id, "model": wanted.model_repo_id}
    return [(kind, name) for kind, name in names.items() if name]


def _read(recipe: Recipe) -> list[str]:
    """The stages whose results are published or told of."""
    trained = ["train", *(["evaluate"] if recipe.prompts.holdout else [])]
    return ["sample", "rank", "pair", *(trained if _asked(recipe).model_repo_id else [])]


def _asked(recipe: Recipe) -> Publish:
    assert recipe.publish is not None  # the pipeline runs no stage that the recipe does not ask for
    return recipe.publish
