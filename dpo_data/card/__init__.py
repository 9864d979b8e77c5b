"""The dataset card: what the data is, how it was made, and what to know before training on it.

The same run gives the same card, byte for byte. Texts of recipes, prompts and models are shown as code, in fences and ticks
longer than any they hold, so none of them reads as Markdown or as front matter.
"""

import json
import re
import tomllib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_data.audit import audit
from dpo_data.audit.warnings import of_all
from dpo_data.config import Recipe, dump
from dpo_data.dataset import CONFIGS, DataFile
from dpo_data.hub import MARK
from dpo_data.report import LABELS, facts, number, percent
from dpo_data.rows import PreferencePair
from dpo_data.rundir import RunDir

SECRET = re.compile(
    r"""(?P<key>\b\w*(?:token|password|secret|api_key)["']?\s*=\s*)(?:"[^"\n]*"|'[^'\n]*')  # a string under such a key
    | \b(?:hf_|sk-)[\w-]{16,}                                                              # a token of known form
    | (?<=://)[^/\s"'@]+(?=@)                                                              # a user and password in an address
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""What of a recipe is withheld from its card."""

LONGEST_TEXT = 1_000
"""Characters of the example row's texts that are shown."""


def card(recipe: Recipe, run: RunDir, data: Sequence[DataFile], tag: str) -> str:
    """README.md for these files of a run: the Hub's front matter, then Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    assert recipe.publish is not None
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters.update(code=code, codes=codes, fenced=fenced, prose=prose, settings=settings, withheld=withheld)
    pages.filters.update(percent=percent, number=number, count=lambda value: f"{value:,}")
    words, tokens, margins, _ = facts.pairs(run)
    scores, unjudged = facts.scores(run)
    audited = audit(recipe, run)
    sampled = run.stage("sample").require()
    configs = _configs(data)
    text = pages.get_template("README.md.j2").render(
        front=front_matter(recipe, data),
        recipe=recipe,
        recipe_text=withheld(nameless(dump(recipe))),
        tag=tag,
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
    return text.rstrip() + "\n"


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


def code(text: Any) -> str:
    """Text as Markdown's code within a line, whatever it holds."""
    line = " ".join(str(text).split())
    ticks = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def codes(texts: Iterable[Any]) -> str:
    return ", ".join(map(code, texts))


def settings(of: Mapping[str, Any]) -> str:
    """Settings as `name = value`, one after the other."""
    return codes(f"{name} = {json.dumps(value)}" for name, value in of.items())


def fenced(text: str, language: str) -> str:
    """Text as a block of code, whatever it holds."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def withheld(recipe: str) -> str:
    """A recipe's TOML without what looks like a secret, and without the name of a home folder."""
    home = str(Path.home())
    shown = recipe.replace(f"{home}/", "~/") if home != "/" else recipe
    return SECRET.sub(lambda found: f'{found["key"]}"(withheld)"' if found["key"] else "(withheld)", shown)


def nameless(recipe: str) -> str:
    """A recipe's TOML without the names of annotators, who were asked to rank and not to be named."""
    import tomli_w

    def shown(table: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key in ("annotator", "annotators", "groups"):
                found[key] = _unnamed(value)
            elif isinstance(value, list):
                found[key] = [shown(one) if isinstance(one, dict) else one for one in value]
            else:
                found[key] = shown(value) if isinstance(value, dict) else value
        return found

    return tomli_w.dumps(shown(tomllib.loads(recipe)))


def _unnamed(names: Any) -> Any:
    """As many as there are, under the names of their groups."""
    if isinstance(names, dict):
        return {group: _unnamed(members) for group, members in names.items()}
    return ["(withheld)" for _ in names] if isinstance(names, list) else "(withheld)"


def prose(text: str) -> str:
    """A sentence of ours that may hold names of others, none of which reads as Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", " ".join(text.split()))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


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
