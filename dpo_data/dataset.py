"""What is published of a run, as files of three configurations: the pairs, all ranked answers, and what the judge said."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpo_data.errors import PublishError
from dpo_data.files import parquet_writers, read_table
from dpo_data.provenance import file_hash
from dpo_data.rows import PreferencePair, Ranking, Sample
from dpo_data.rundir import RunDir
from dpo_data.tables import SCHEMAS, SOMETIMES, present, schema_of

CONFIGS = ("default", "ranked", "judgments")
"""The configurations, by the names that `load_dataset(repo, name)` takes."""

FILE_BYTES = 256 * 2**20
"""About how large a published file of ranked answers or judgments is, before the scores are joined."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of the dataset: `file` is where it is here, `path` where it goes."""

    config: str
    split: str
    index: int
    file: Path
    schema: pa.Schema
    rows: int

    @property
    def path(self) -> str:
        return f"{self.config}/{self.split}-{self.index:05d}.parquet"


def gather(run: RunDir, folder: Path, judgments: bool) -> list[DataFile]:
    """The dataset's files, each of which holds what it says. What the run has not got in this shape is written into `folder`.

    Raises PublishError where a file's rows or schema are not those that its stage declared.
    """
    sampled, ranked = run.stage("sample"), run.stage("rank")
    told = {"sample": sampled.require(), "rank": ranked.require(), "pair": run.stage("pair").require()}
    columns = present(told["pair"])
    ranked_columns = ranked_schema(columns)

    def rankings(shard: Path) -> pa.Table:
        path = ranked.path / shard.name
        return _read(path, SCHEMAS[Ranking]) if path.exists() else SCHEMAS[Ranking].empty_table()

    def joined(shard: Path) -> pa.Table:
        return join(_read(shard, SCHEMAS[Sample]), rankings(shard), ranked_columns)

    files = [
        *_pairs(run, told["pair"], schema_of(PreferencePair, **columns)),
        *_write(folder, "ranked", sampled.shards(), ranked_columns, joined),
    ]
    if judgments:
        files += _write(folder, "judgments", sampled.shards(), SCHEMAS[Ranking], rankings)
    for config, stage in (("ranked", "sample"), ("judgments", "rank")):
        found, wanted = sum(one.rows for one in files if one.config == config), _shard_rows(told[stage])
        if found != wanted and (config == "ranked" or judgments):
            raise _mismatch(run.stage(stage).path, f"{wanted} rows by its manifest, and {found} in its files")
    return files


def is_ours(path: str) -> bool:
    """Whether a file of the repository is one that a push makes, and so may delete."""
    folder, _, name = path.partition("/")
    return folder in CONFIGS and re.fullmatch(r"(train|test)-\d+\.parquet", name) is not None


def ranked_schema(columns: Mapping[str, bool]) -> pa.Schema:
    """A row a sampled prompt: all its completions, each with the judge's score, null where it gave none. `tools`, with
    `tool_calls`, and `chat_template_kwargs` are JSON text, and are there in a run that has them, as `columns` says. Token ids
    are not: to others they mean nothing."""
    sample = SCHEMAS[Sample]
    left_out = {name for name in SOMETIMES if not columns[name]} | (set() if columns["tools"] else {"tool_calls"})
    turn = [field for field in sample.field("prompt").type.value_type if field.name not in left_out]
    ours = {"score", "token_ids", *left_out}
    answer = [field for field in sample.field("completions").type.value_type if field.name not in ours]
    scores = [pa.field("given_score", pa.float64()), pa.field("score", pa.float64())]
    return pa.schema(
        [
            sample.field("prompt_id"),
            pa.field("prompt", pa.list_(pa.struct(turn)), nullable=False),
            *(sample.field(name) for name in (*SOMETIMES, "source") if name not in left_out),
            pa.field("judge", pa.string()),
            pa.field("abstained", pa.string()),
            pa.field("completions", pa.list_(pa.struct(answer + scores)), nullable=False),
            sample.field("error"),
        ]
    )


def join(samples: pa.Table, rankings: pa.Table, schema: pa.Schema) -> pa.Table:
    """Samples with what the judge made of them, by completion id, in this `ranked_schema`. Raises PublishError where a score
    belongs to no completion of these."""
    ids, scores = (rankings[name].combine_chunks().flatten() for name in ("completion_ids", "scores"))
    score_of = dict(zip(ids.to_pylist(), scores.to_pylist(), strict=True))
    judged = dict(zip(*(rankings[name].to_pylist() for name in ("prompt_id", "judge")), strict=True))
    abstained = dict(zip(*(rankings[name].to_pylist() for name in ("prompt_id", "abstained")), strict=True))
    prompts = samples["prompt_id"].to_pylist()
    completions = samples["completions"].combine_chunks()
    answers = completions.flatten()
    known = answers.field("completion_id").to_pylist()
    if score_of.keys() - set(known) or judged.keys() - set(prompts):
        raise _mismatch(Path("2-rank"), "it ranks answers that 1-sample does not hold")
    made = {
        **{name: samples[name] for name in samples.schema.names},
        "prompt": _with_fields(samples["prompt"].combine_chunks(), schema.field("prompt").type, {}),
        "judge": pa.array([judged.get(id) for id in prompts], pa.string()),
        "abstained": pa.array([abstained.get(id) for id in prompts], pa.string()),
        "completions": _with_fields(
            completions,
            schema.field("completions").type,
            {"given_score": answers.field("score"), "score": pa.array(map(score_of.get, known), pa.float64())},
        ),
    }
    return pa.Table.from_arrays([made[field.name] for field in schema], schema=schema)


def _with_fields(lists: pa.Array, kind: pa.DataType, new: dict[str, pa.Array]) -> pa.Array:
    """A list of structs as a list of other structs: fields by name, the `new` ones among them."""
    items = lists.flatten()
    fields = list(kind.value_type)
    columns = [new[field.name] if field.name in new else items.field(field.name) for field in fields]
    offsets = pc.subtract(lists.offsets, lists.offsets[0])
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields), type=kind)


def _pairs(run: RunDir, manifest: dict[str, Any], declared: pa.Schema) -> Iterator[DataFile]:
    """The pairs as they are; a split without rows is left out."""
    told = {facts["name"]: facts for facts in manifest["files"]}
    for split in ("train", "test"):
        file, facts = run.stage("pair").path / f"{split}.parquet", told[f"{split}.parquet"]
        if file_hash(file) != facts["sha256"]:  # read once more: what leaves is looked at as it is now
            raise _mismatch(file, "it is not the file that the stage wrote")
        if facts["rows"]:
            yield _checked(DataFile("default", split, 0, file, declared, facts["rows"]))


def _write(
    folder: Path, config: str, shards: list[Path], schema: pa.Schema, read: Callable[[Path], pa.Table]
) -> Iterator[DataFile]:
    """One configuration, shard by shard, in files of about FILE_BYTES."""
    for index, group in enumerate(_groups(shards)):
        file = folder / f"{config}-{index:05d}.parquet"
        rows = 0
        with parquet_writers({file: schema}) as append:
            for shard in group:
                table = read(shard)
                append[file.name](table)
                rows += len(table)
        yield _checked(DataFile(config, "train", index, file, schema, rows))


def _groups(shards: list[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    size = 0
    for shard in shards:
        group.append(shard)
        size += shard.stat().st_size
        if size >= FILE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _checked(found: DataFile) -> DataFile:
    """Raises PublishError unless the file holds the rows and the schema that it says."""
    with pq.ParquetFile(found.file) as file:
        if not file.schema_arrow.equals(found.schema):
            raise _mismatch(found.file, "its schema is not the one that is declared")
        if file.metadata.num_rows != found.rows:
            raise _mismatch(found.file, f"it should hold {found.rows} rows, and holds {file.metadata.num_rows}")
    return found


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    return read_table(path, schema.names)


def _shard_rows(manifest: dict[str, Any]) -> int:
    return sum(file["rows"] for file in manifest["files"] if file["name"].removesuffix(".parquet").isdigit())


def _mismatch(path: Path, what: str) -> PublishError:
    return PublishError(f"{path} is not published: {what}", "Delete that stage's folder and those after it, and run again.")
