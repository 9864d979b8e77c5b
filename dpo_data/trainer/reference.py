"""The reference's log-probs of every answer, known before the first step: from sampling where they hold, else computed once."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpo_data.files import PARQUET, read_table, write_atomically
from dpo_data.trainer.tokens import SIDES

log = logging.getLogger(__name__)

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""What vLLM calls a precision."""

TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}
"""How far, in nats an answer, a sampled log-prob may be from the trainer's own. vLLM and transformers were seen to differ by
7.5e-6 in fp32 and 0.07 in bf16 over 256 answers; other weights, or another template, by whole nats."""

CHECKED = 8
"""Pairs whose log-probs from sampling are computed as well, to compare."""

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""Where TRL looks for them."""

SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("chosen_id", "rejected_id")]
    + [pa.field(name, pa.float64(), nullable=False) for name in COLUMNS]
    + [pa.field("sampled", pa.bool_(), nullable=False)]
)

Known = dict[tuple[str, str], tuple[float, float, bool]]
"""By the ids of a pair's answers: the log-probs of the chosen and the rejected, in nats, and whether both are from sampling."""


def why_not_sampled(job: dict[str, Any], precision: str, template: str) -> str | None:
    """Why the log-probs that `sample` kept are not those of the reference; None where they are: of the same weights, in the
    same precision, before temperature, after a prompt of the same template. `template`: the hash of the trainer's."""
    policy = job["policy"]
    if job["settings"].get("sft"):
        return "the reference is the model after its supervised fine-tuning"
    if job["settings"]["method"] == "qlora":
        return "the reference's weights are those in 4 bits"
    if policy is None:
        return "nothing tells how the engine computed its own"
    wanted = {**job["weights"], "dtype": DTYPES[precision], "quantization": None, "template": template}
    for name, value in {**wanted, "logprobs": "raw_logprobs"}.items():
        if policy.get(name) != value:
            return f"{name} was {policy.get(name)} in sampling, and is {value} in training"
    return None


def attach(trainer: Any, path: Path, precision: str, why: str | None) -> dict[str, Any]:
    """Give the trainer's datasets the columns that TRL reads, from the file `path` where an earlier attempt wrote it in this
    precision. `why`: that sampling's are not used, if so. Returns how many pairs have theirs from sampling, how many have
    computed ones, why, and the largest difference found where both are known."""
    datasets = {"train_dataset": trainer.train_dataset, "eval_dataset": trainer.eval_dataset}
    present = {name: pairs for name, pairs in datasets.items() if pairs is not None}
    known, told = _read(path, precision), _told(path)
    if known is None:
        known = {} if why else _sampled(list(present.values()))
        off = _furthest(trainer, trainer.train_dataset, known)
        if off is not None and not off <= TOLERANCE[precision]:
            why = f"they are off by up to {off:.3g} nats an answer, more than {TOLERANCE[precision]:g}"
            log.warning("the log-probs that `sample` kept are not the reference's: %s; all are computed", why)
            known = {}
        for pairs in present.values():
            missing = [at for at, key in enumerate(_keys(pairs)) if key not in known]
            known |= {key: (*both, False) for key, both in _computed(trainer, pairs, missing).items()}
        told = {"why_computed": why, "off_by": off}
        if trainer.is_world_process_zero():
            _write(path, precision, known, told)
    for name, pairs in present.items():
        setattr(trainer, name, _with_columns(pairs, known))
    keys = [key for pairs in present.values() for key in _keys(pairs)]
    sampled = sum(known[key][2] for key in keys)
    return {"sampled": sampled, "computed": len(keys) - sampled, **told}


def _keys(pairs: Any) -> list[tuple[str, str]]:
    return list(zip(pairs["chosen_id"][:], pairs["rejected_id"][:], strict=True))


def _sampled(datasets: list[Any]) -> Known:
    """The pairs both of whose answers came with a log-prob."""
    found: Known = {}
    for pairs in datasets:
        sums = (pairs[f"logprob_{side}"][:] for side in SIDES)
        for key, chosen, rejected in zip(_keys(pairs), *sums, strict=True):
            if chosen is not None and rejected is not None:
                found[key] = (chosen, rejected, True)
    return found


def _furthest(trainer: Any, pairs: Any, known: Known) -> float | None:
    """The largest difference, in nats an answer, between the known log-probs of some pairs and what the trainer computes; NaN
    where one is no number. None where none is known."""
    rows = [at for at, key in enumerate(_keys(pairs)) if key in known]
    some = _computed(trainer, pairs, sorted(set(rows[:: max(1, len(rows) // CHECKED)][:CHECKED])))
    offs = [abs(one - other) for key, both in some.items() for one, other in zip(both, known[key], strict=False)]
    return None if not offs else max(offs) if all(off == off for off in offs) else float("nan")


def _computed(trainer: Any, pairs: Any, rows: list[int]) -> dict[tuple[str, str], tuple[float, float]]:
    """What TRL computes for those rows, batches of equally long pairs together."""
    from torch.utils.data import DataLoader

    if not rows:
        return {}
    lengths = pairs["length"][:]
    some = pairs.select(sorted(rows, key=lambda at: (lengths[at], at)))
    log.info("computing the reference's log-probs of %d pairs", len(some))
    size = trainer.args.precompute_ref_batch_size or trainer.args.per_device_train_batch_size
    loader = trainer.accelerator.prepare(DataLoader(some, batch_size=size, collate_fn=trainer.data_collator))
    found: list[tuple[float, float]] = []
    for batch in loader:
        both = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
        found += zip(*(side.tolist() for side in trainer.accelerator.gather_for_metrics(both)), strict=True)
    return dict(zip(_keys(some), found, strict=True))


def _with_columns(pairs: Any, known: Known) -> Any:
    """The pairs with what TRL reads, each by the ids of its answers."""
    from datasets import Dataset

    table = pairs.data.table
    for at, name in enumerate(COLUMNS):
        table = table.append_column(name, pa.array([known[key][at] for key in _keys(pairs)], pa.float64()))
    return Dataset(table)


def _read(path: Path, precision: str) -> Known | None:
    """What an earlier attempt wrote. All else that decides it decides the stage, whose folder it is in."""
    if not path.exists() or (pq.read_schema(path).metadata or {}).get(b"precision") != precision.encode():
        return None
    columns = read_table(path, SCHEMA.names).to_pydict()
    rows = zip(*(columns[name] for name in SCHEMA.names), strict=True)
    return {(chosen, rejected): (one, other, sampled) for chosen, rejected, one, other, sampled in rows}


def _told(path: Path) -> dict[str, Any]:
    """What an earlier attempt found of sampling's log-probs."""
    told: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {}).get(b"told", b"{}")) if path.exists() else {}
    return told


def _write(path: Path, precision: str, known: Known, told: dict[str, Any]) -> None:
    rows = [dict(zip(SCHEMA.names, (*key, *values), strict=True)) for key, values in known.items()]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(
        {"precision": precision, "told": json.dumps(told)}
    )
    pq.write_table(table, sink, **PARQUET)
    write_atomically(path, memoryview(sink.getvalue()))
