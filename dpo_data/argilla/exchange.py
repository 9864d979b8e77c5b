"""Records on their way to an Argilla, and what stands there on the way back."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from dpo_data.argilla.client import Client
from dpo_data.argilla.dataset import Dataset
from dpo_data.argilla.records import Record, as_json, body, fields, in_order, metadata, suggestion
from dpo_data.errors import ArgillaError
from dpo_data.rows import content_id

log = logging.getLogger(__name__)

BATCH = 200
"""Records in a request: Argilla takes 500 at most, and answers nobody else while it writes them."""
BATCH_BYTES = 4_000_000
PAGE = 1_000
"""Records in an answer: as many as Argilla gives at once."""


@dataclass(frozen=True, slots=True)
class Response:
    """What one user answered to a record: `values` by question, `at` in UTC, and the `seconds` since the same user's answer
    before it; None for the first."""

    user: str
    status: Literal["submitted", "discarded", "draft"]
    values: dict[str, Any]
    at: datetime
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A record as it stands in Argilla. `order`: completion ids as shown; `shown`: a hash of its fields; `told`: of its
    metadata; `suggestions`: the path of what is `suggested`, to delete it."""

    order: list[str]
    shown: str
    told: str
    suggested: dict[str, Any]
    responses: list[Response]
    suggestions: str = ""


NOTHING = Standing([], "", "", {}, [])
"""A record that is not there, or that nobody has answered."""


def is_answered(client: Client, dataset: Dataset) -> bool:
    """Whether anybody has answered anything, drafts too: one cheap question."""
    users = client.get(f"datasets/{dataset.id}/users/progress")["users"]
    return any(count for user in users for of in (user["completed"], user["pending"]) for count in of.values())


def count(client: Client, dataset: Dataset) -> int:
    """How many records there are."""
    return int(client.get(f"datasets/{dataset.id}/records", limit=1)["total"])


def read(client: Client, dataset: Dataset) -> dict[str, Standing]:
    """Every record of a dataset by its external id, whoever sent it. Raises ArgillaError where not all could be read."""
    names = {id: name for name, id in dataset.questions.items()}
    found: dict[str, Standing] = {}
    seen: set[str] = set()
    total, offset = 0, 0
    while True:
        page = client.get(f"datasets/{dataset.id}/records", include="responses,suggestions", limit=PAGE, offset=offset)
        offset += len(page["items"])
        total = page["total"]
        for item in page["items"]:
            seen.add(item["id"])
            found[item["external_id"] or item["id"]] = _standing(item, names)
        if not page["items"] or offset >= total:
            break
        log.info("argilla: read %d of %d records of %s", offset, total, dataset.layout.name)
    if len(seen) < total:
        raise ArgillaError(
            f"{len(seen)} of the {total} records of {dataset.layout.name!r} came: somebody is changing it", "Run again."
        )
    return _timed(found)


def _standing(item: dict[str, Any], names: dict[str, str]) -> Standing:
    suggested = {
        names[one["question_id"]]: one["value"] for one in item.get("suggestions") or [] if one["question_id"] in names
    }
    told = item.get("metadata") or {}
    responses = [
        Response(
            one["user_id"],
            one["status"],
            {name: answer.get("value") for name, answer in (one["values"] or {}).items() if answer},
            datetime.fromisoformat(one["updated_at"]),
        )
        for one in item.get("responses") or []
    ]
    order = str(told.get("answers") or "").split(",")
    ids = ",".join(one["id"] for one in item.get("suggestions") or [])
    where = f"records/{item['id']}/suggestions?ids={ids}" if ids else ""
    return Standing(order, content_id(item["fields"]), content_id(told), suggested, responses, where)


def _timed(found: dict[str, Standing]) -> dict[str, Standing]:
    """The same, in which each response knows how long after the same user's last one it came."""
    times: dict[str, list[datetime]] = {}
    for standing in found.values():
        for one in standing.responses:
            times.setdefault(one.user, []).append(one.at)
    before = {user: dict(zip(sorted(of)[1:], sorted(of), strict=False)) for user, of in times.items()}

    def timed(one: Response) -> Response:
        last = before[one.user].get(one.at)
        return Response(one.user, one.status, one.values, one.at, (one.at - last).total_seconds() if last else None)

    return {id: replace(one, responses=[timed(response) for response in one.responses]) for id, one in found.items()}


def push(client: Client, dataset: Dataset, records: Iterable[Record], there: dict[str, Standing], suggest: bool) -> int:
    """Send what is missing, and anew what stands there otherwise and nobody has answered. Returns how many were sent. Raises
    ArgillaError where people answered a text that has changed since."""
    sent = 0
    wanted = (out for record in records if (out := _to_send(record, there.get(record.id), dataset, suggest)))
    wanted = (_without_suggestions(client, record, there.get(record.id)) for record in wanted)
    for batch in _batches(as_json(body(record, dataset, suggest)) for record in wanted):
        client.put(f"datasets/{dataset.id}/records/bulk", b'{"items":[' + b",".join(batch) + b"]}")
        sent += len(batch)
        log.info("argilla: pushed %d records to %s, where %d were before", sent, dataset.layout.name, len(there))
    return sent


def _to_send(record: Record, standing: Standing | None, dataset: Dataset, suggest: bool) -> Record | None:
    """What is to be sent of a record: nothing where it stands there as it is, in whatever order of its answers."""
    if standing is None:
        return record
    same = in_order(record, standing.order)
    changed = content_id(fields(same, dataset.layout.markdown)) != standing.shown
    if standing.responses:
        what = "The texts" if changed else "The ids of the answers" if sorted(standing.order) != sorted(record.order) else None
        if what is None:
            return None
        raise ArgillaError(
            f"{what} of prompt {record.group.prompt_id} ({record.group.source}) have changed since people answered it "
            f"in {dataset.layout.name!r}, as record {record.id}",
            "Name another dataset under rank.judge, or delete that record in Argilla to ask anew.",
        )
    fills = suggestion(same, dataset.layout.question) if suggest else {}
    changed = changed or content_id(metadata(same)) != standing.told or fills != standing.suggested
    return same if changed else None


def _without_suggestions(client: Client, record: Record, standing: Standing | None) -> Record:
    """The same record, whose old suggestions are gone: an upsert would leave those for which it has none."""
    if standing and standing.suggestions:
        client.ask("DELETE", standing.suggestions)
    return record


def _batches(items: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Batches within limits, by number and by bytes; one that is larger by itself goes alone."""
    batch: list[bytes] = []
    size = 0
    for item in items:
        if batch and (len(batch) == BATCH or size + len(item) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield batch
