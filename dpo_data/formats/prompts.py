"""Prompts, the answers that came with them, and evaluation texts: from a file, a folder of texts, or a dataset on the Hub."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qsl

from pydantic import Field, field_validator

from dpo_data.errors import InputError
from dpo_data.formats import hub
from dpo_data.formats.answers import answers
from dpo_data.formats.readers import read, texts_of
from dpo_data.formats.shapes import Answer, Record, Shaped, no_reference, parted, shaped, user_turns
from dpo_data.formats.turns import template_kwargs
from dpo_data.formats.values import short
from dpo_data.provenance import file_hash
from dpo_data.rows import Prompt, TemplateKwargs, in_share, prompt_id
from dpo_data.seams import Settings
from dpo_data.share import find

log = logging.getLogger(__name__)


class Decontaminate(Settings):
    """Drop prompts that overlap the evaluation sets `against` (paths, as `evaluation_texts` takes them): those that hold at
    least `share` of the n-grams (of `n` words) of one evaluation text. A text shorter than n words is looked for whole."""

    against: list[str]
    n: int = Field(8, ge=1)
    share: float = Field(0.5, gt=0, le=1)


class Prompts(Settings):
    """Where prompts come from: a file, or `hf://datasets/<repo>` with its `name` (configuration), `split` and `revision`.

    `limit` is how many records are read. `reference` names the column of each record's reference answer, a text or a number,
    with which a judge may compare: it is neither a part of the prompt nor an answer that came with it, and a record may have
    none. `system` is put before every prompt that has no system turn. `chat_template_kwargs` are variables of the chat template
    for every prompt, as { enable_thinking = false }; a record's own, in a column of that name, override them. `holdout` is the
    share kept from sampling and training, for `evaluate`. `near_duplicates` is the similarity (Jaccard, of five-word shingles)
    from which a later prompt is dropped; 1 drops exact repetitions alone. `workers`: with more than one, as many tasks on Ray
    compare the texts, for what outgrows one machine.
    """

    incidental = frozenset({"workers"})
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    system: str | None = None
    limit: int | None = Field(None, ge=1)
    reference: str | None = None
    chat_template_kwargs: TemplateKwargs = {}
    holdout: float = Field(0.0, ge=0, lt=1)
    near_duplicates: float = Field(0.8, gt=0, le=1)
    decontaminate: Decontaminate | None = None
    workers: int = Field(1, ge=1)

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_the_templates_own(cls, given: TemplateKwargs) -> TemplateKwargs:
        return template_kwargs(given, "prompts.chat_template_kwargs in the recipe") or {}


def is_held_out(prompt: Prompt, holdout: float, seed: int) -> bool:
    """Whether a prompt is kept from sampling and training, for evaluation: a share `holdout` (0–1), decided by its id."""
    return in_share(prompt.prompt_id, holdout, f"holdout:{seed}")


def prompts_hash(prompts: Prompts) -> str | None:
    """What pins the prompts: a file's SHA-256, one over all files of a folder, or a dataset's commit. None where there is
    nothing, which `read_prompts` says better."""
    prompts = _addressed(prompts)
    if prompts.path.startswith(hub.SCHEME):
        return hub.commit(hub.repo_of(prompts.path), prompts.revision)
    path = _place(prompts.path)
    if path.is_dir():
        listed = "".join(f"{file.name} {file_hash(file)}\n" for file in texts_of(path))
        return hashlib.sha256(listed.encode()).hexdigest()
    return file_hash(path) if path.is_file() else None


def prompts_shape(prompts: Prompts) -> str | None:
    """How the first record is understood, as `Alpaca instruction, answered by output`; None where there is no record."""
    first = ((where, parted(record, prompts.reference, where)[0]) for where, _, record in _records(prompts))
    return next((shaped(record, where).shape for where, record in first), None)


def read_prompts(prompts: Prompts) -> Iterator[Prompt]:
    """The prompts of the first `limit` records, or of all, in their order. Raises InputError with file, line, and what was
    expected."""
    for _, _, _, prompt in _understood(prompts):
        yield prompt


def read_given(prompts: Prompts) -> Iterator[tuple[Prompt, list[Answer]]]:
    """Each prompt of the first `limit` records, or of all, once, with all the answers that came with it in any record; in the
    order in which the prompts are complete. Raises InputError.

    Reads twice: first it counts the records of each prompt, so that only prompts with records to come are held in memory.
    """
    waiting = Counter(prompt.prompt_id for prompt in read_prompts(prompts))
    begun: dict[str, tuple[Prompt, list[Answer]]] = {}
    for where, record, found, prompt in _understood(prompts):
        first, given = begun.get(prompt.prompt_id, (prompt, []))
        given.extend(answers(record, found, where))
        begun[prompt.prompt_id] = _referenced(first, prompt, where), given
        waiting[prompt.prompt_id] -= 1
        if not waiting[prompt.prompt_id]:
            del waiting[prompt.prompt_id]
            yield begun.pop(prompt.prompt_id)


def _referenced(first: Prompt, again: Prompt, where: str) -> Prompt:
    """A prompt that came in several records, with the one reference answer of those. Raises InputError where there are two."""
    if again.reference is None or again.reference == first.reference:
        return first
    if first.reference is None:
        return replace(first, reference=again.reference)
    raise InputError(
        f"{where}: the reference answer is {short(again.reference)!r}, and {short(first.reference)!r} at {first.source}, "
        "for the same prompt",
        "Give a prompt the same one in all of its records.",
    )


def evaluation_texts(path: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every user turn of every record of an evaluation set: a path like a prompts file's; a dataset's
    configuration, split and revision go behind it, as `hf://datasets/openai/gsm8k?name=main&split=test`. Raises InputError."""
    for where, _, record in _records(Prompts(path=path)):
        for text in user_turns(record, where):
            yield where, text


def _place(path: str) -> Path:
    try:
        return find(path)
    except (OSError, RuntimeError) as error:  # a name too long, or a home folder of nobody
        raise InputError(f"No prompts at {path}: {error}", "Name a file under [prompts] path.") from None


def _addressed(prompts: Prompts) -> Prompts:
    """A dataset's `?name=…&split=…&revision=…` behind its path, as the keys of those names."""
    path, asked, query = prompts.path.partition("?")
    if not asked or not path.startswith(hub.SCHEME):
        return prompts
    keys = dict(parse_qsl(query))
    unknown = keys.keys() - {"name", "split", "revision"}
    if unknown:
        raise InputError(f"{prompts.path} has an unknown key {min(unknown)!r}", "Known behind `?`: name, split, revision.")
    return prompts.model_copy(update={"path": path, **keys})


def _records(prompts: Prompts) -> Iterator[tuple[str, str, Record]]:
    """Where each of the first `limit` records stands in words, its source, and its columns."""
    prompts = _addressed(prompts)
    if prompts.path.startswith(hub.SCHEME):
        repo, sha = hub.repo_of(prompts.path), prompts_hash(prompts) or ""
        name = f"{repo}@{sha[:7]}:{prompts.split}"
        records = hub.read(repo, prompts.name, prompts.split, sha, prompts.reference)
    else:
        path = _place(prompts.path)
        name, records = path.name, read(path, prompts.path, prompts.reference)
    for place, record in islice(records, prompts.limit):
        yield f"{prompts.path}, {place}", f"{name}:{place.partition(' ')[2]}", record


def _understood(prompts: Prompts) -> Iterator[tuple[str, Record, Shaped, Prompt]]:
    """Each record with where it stands, what it holds, and its prompt. Each shape is told in the log as it is met. Raises
    InputError after the last one, where reference answers are asked for and none has one."""
    told: set[str] = set()
    columns: dict[str, None] = {}
    referenced = prompts.reference is None
    for where, place, record in _records(prompts):
        if not referenced:
            columns.update(dict.fromkeys(record))
        record, reference = parted(record, prompts.reference, where)
        referenced = referenced or reference is not None
        found = shaped(record, where)
        if found.shape not in told:
            told.add(found.shape)
            log.info("%s: %s", where, found.shape)
        messages, source = found.messages, record.get("source")
        if prompts.system is not None and all(turn["role"] != "system" for turn in messages):
            messages = [{"role": "system", "content": prompts.system}, *messages]
        kwargs = {**prompts.chat_template_kwargs, **(found.chat_template_kwargs or {})} or None
        id, source = prompt_id(messages, found.tools, kwargs), source if isinstance(source, str) else place
        yield where, record, found, Prompt(id, messages, source, found.tools, reference, kwargs)
    if columns and prompts.reference is not None and not referenced:
        raise no_reference(prompts.path, prompts.reference, columns)
