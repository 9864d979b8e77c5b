"""How much a model forgets: the perplexity of a text that has nothing to do with the task, before and after training.

The models stand in a child process, one after the other, as they are sampled: without quantization, an adapter on top.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from dpo_data.child import Child
from dpo_data.config import Policy
from dpo_data.errors import InputError, TrainError
from dpo_data.evaluation.figures import estimate
from dpo_data.evaluation.schema import Estimate, Perplexity
from dpo_data.formats.prompts import evaluation_texts
from dpo_data.models import find_adapter, find_model
from dpo_data.seams import Progress
from dpo_data.share import find

WINDOW = 1024
"""Tokens that a model sees at once, or fewer where it can take fewer; half of them are scored, so that all but a text's first
have at least the other half before them."""


def texts(path: str) -> Iterator[str]:
    """A .txt or .md file as one text; of anything else, each user turn of `formats.prompts.evaluation_texts`. Raises InputError
    where it cannot be read, or holds nothing."""
    if Path(path).suffix.lower() in (".txt", ".md"):
        try:
            found = [find(path).read_text(encoding="utf-8-sig")]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}", "Name a UTF-8 text under evaluate.perplexity.") from None
        said = iter(found)
    else:
        said = (text for _, text in evaluation_texts(path))
    some = False
    for text in said:
        if text.strip():
            some = True
            yield text
    if not some:
        raise InputError(f"{path} holds no text", "Name one with some text under evaluate.perplexity.")


def perplexity(path: str, policies: Mapping[str, Policy], progress: Progress) -> Perplexity:
    """Of base and trained model. Raises InputError where the text has no two tokens, or the models tell it apart otherwise, and
    TrainError where a perplexity is not finite."""
    sides = {who: policies[who] for who in ("base", "trained")}
    found: dict[str, np.ndarray] = {}
    with closing(
        Child("dpo_data.evaluation.perplexity_child:work", "perplexity", {"TOKENIZERS_PARALLELISM": "false"})
    ) as child:
        for policy in sides.values():
            model, adapter = find_model(policy.model, policy.revision), find_adapter(policy.adapter)
            child.send({"model": model, "revision": policy.revision, "adapter": adapter, "window": WINDOW})
        said = list(texts(path))
        child.send({"texts": said})
        for who in sides:
            while "parts" not in (heard := child.receive()):
                progress(f"evaluate perplexity of {who}", heard["done"], len(said))
            found[who] = np.array(heard["parts"], dtype=float).reshape(-1, 2)
    base, trained = found.values()
    if not len(base) or not np.array_equal(base[:, 1], trained[:, 1]):
        raise InputError(
            f"{path} gives base and trained model other tokens, or none, so its perplexities cannot be compared",
            "Name a longer text under evaluate.perplexity, or leave it out.",
        )
    value = {who: _finite(who, parts, path) for who, parts in found.items()}
    return Perplexity(
        path=path, texts=len(said), tokens=int(base[:, 1].sum()), base=value["base"], trained=value["trained"],
        rise=rise(base, trained),
    )  # fmt: skip


def _finite(who: str, parts: np.ndarray, path: str) -> float:
    """The perplexity, from negative log-likelihoods and tokens as `rise` takes them. Raises TrainError for no finite number."""
    with np.errstate(over="ignore"):
        value = float(np.exp(parts[:, 0].sum() / parts[:, 1].sum()))
    if not np.isfinite(value):
        remedy = {
            "base": "Use another base model, or leave evaluate.perplexity out.",
            "trained": "Its weights are broken: train again in a fork, with a lower train.learning_rate.",
        }
        raise TrainError(f"The {who} model's perplexity of {path} is {value}, no finite number", remedy[who])
    return value


def rise(base: np.ndarray, trained: np.ndarray) -> Estimate:
    """trained / base − 1 of perplexities, from the negative log-likelihoods (nats) of stretches of text and their tokens, shape
    (stretches, 2) each. The interval comes from resampling stretches, which are taken to be independent of each other."""
    found = estimate(
        np.column_stack([trained[:, 0] - base[:, 0], base[:, 1]]), lambda sums: np.expm1(sums[..., 0] / sums[..., 1])
    )
    assert found is not None  # there is a token
    return found
