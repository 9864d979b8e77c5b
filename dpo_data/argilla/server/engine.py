"""A search engine for argilla-server that answers from the server's own SQLite database.

All that Elasticsearch would hold is in that database before the server tells its engine of it. So there is no index to keep in
step: what writes does nothing here, and a search is a SELECT over the records.
"""

import asyncio
import math
import sqlite3
from collections.abc import Sequence
from operator import mul
from typing import Any
from uuid import UUID

from argilla_server.database import AsyncSessionLocal
from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.models import Dataset, MetadataProperty, Record, Response, User, Vector, VectorSettings
from argilla_server.search_engine import (
    Filter,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    Order,
    SearchResponseItem,
    SearchResponses,
    TermsMetrics,
    TextQuery,
)
from server.filters import condition, sort_key, values
from server.text import has_text
from sqlalchemy import ColumnElement, Select, func, literal_column, select, true
from sqlalchemy import text as sql

_ROW: ColumnElement[int] = literal_column("records.rowid")
_PRIME = 2_147_483_647


class Engine:
    """The methods of argilla_server.search_engine.SearchEngine."""

    @classmethod
    async def new_instance(cls) -> "Engine":
        return cls()

    async def ping(self) -> bool:
        async with AsyncSessionLocal() as db:
            return bool((await db.execute(sql("SELECT 1"))).scalar())

    async def info(self) -> dict[str, Any]:
        return {"name": "sqlite", "version": {"number": sqlite3.sqlite_version}}

    async def _nothing(self, *_: Any, **__: Any) -> None:
        """What there is to do for a write, and at the end."""

    close = create_index = delete_index = configure_metadata_property = configure_index_vectors = _nothing
    index_records = partial_record_update = delete_records = _nothing
    update_record_response = delete_record_response = update_record_suggestion = delete_record_suggestion = _nothing

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """The number of records, in all and by status."""
        return {} if dataset.is_draft else await _counts(_count(Record.status).where(Record.dataset_id == dataset.id))

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """The number of a user's responses, in all and by status."""
        responses = _count(Response.status).join(Record, Record.id == Response.record_id)
        mine = responses.where(Record.dataset_id == dataset.id, Response.user_id == user.id)
        return {} if dataset.is_draft else await _counts(mine)

    async def compute_metrics_for(
        self, metadata_property: MetadataProperty
    ) -> TermsMetrics | IntegerMetadataMetrics | FloatMetadataMetrics:
        """How often each term occurs, or the range of the numbers."""
        each = values(Record.metadata_, metadata_property.name)
        rows = select().select_from(Record).join(each, true())
        rows = rows.where(Record.dataset_id == metadata_property.dataset_id, each.c.type != "null")
        async with AsyncSessionLocal() as db:
            if metadata_property.type == MetadataPropertyType.terms:
                counted = rows.add_columns(each.c.value, func.count()).group_by(each.c.value)
                found = (await db.execute(counted.order_by(func.count().desc(), each.c.value))).all()
                terms = [TermsMetrics.TermCount(term=str(term), count=count) for term, count in found]
                return TermsMetrics(total=sum(one.count for one in terms), values=terms)
            least, most = (await db.execute(rows.add_columns(func.min(each.c.value), func.max(each.c.value)))).one()
        integer = metadata_property.type == MetadataPropertyType.integer
        return (IntegerMetadataMetrics if integer else FloatMetadataMetrics)(min=least, max=most)

    async def search(
        self,
        dataset: Dataset,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        sort: list[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: UUID | None = None,
    ) -> SearchResponses:
        """A page of the records that fit. Where no order is asked for, `user_id`'s own: people who answer side by side do not
        meet at the same record."""
        wanted = _wanted(select(), dataset, query, filter)
        order = [sort_key(one) for one in sort or []]
        if not order and user_id is not None:
            order = [_ROW * (UUID(str(user_id)).int % _PRIME) % _PRIME]
        page = wanted.add_columns(Record.id).order_by(*order, Record.inserted_at, _ROW).offset(offset).limit(limit)
        async with AsyncSessionLocal() as db:
            total = (await db.execute(wanted.add_columns(func.count()))).scalar_one()
            found = (await db.scalars(page)).all()
        return SearchResponses(items=[SearchResponseItem(record_id=one, score=1.0) for one in found], total=total)

    async def similarity_search(
        self,
        dataset: Dataset,
        vector_settings: VectorSettings,
        value: list[float] | None = None,
        record: Record | None = None,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,
        max_results: int = 100,
        order: SimilarityOrder = SimilarityOrder.most_similar,
        threshold: float | None = None,
    ) -> SearchResponses:
        """The records whose vectors are nearest to a value, or to a record's own, or farthest. Scored (1 + cosine) / 2."""
        value = value or (record and record.vector_value_by_vector_settings(vector_settings))
        if not value:
            raise ValueError("Neither a vector nor a record that has one")
        rows = _wanted(select(Record.id, Vector.value), dataset, query, filter).join(Vector, Vector.record_id == Record.id)
        rows = rows.where(Vector.vector_settings_id == vector_settings.id)
        if record is not None:
            rows = rows.where(Record.id != record.id)
        async with AsyncSessionLocal() as db:
            found = (await db.execute(rows)).all()
        sign = -1 if order == SimilarityOrder.least_similar else 1
        scores = await asyncio.to_thread(lambda: [(1 + sign * _cosine(value, vector)) / 2 for _, vector in found])
        best = sorted(zip(scores, (ident for ident, _ in found), strict=True), key=lambda one: -one[0])
        items = [SearchResponseItem(record_id=ident, score=score) for score, ident in best if score >= (threshold or 0)]
        return SearchResponses(items=items[:max_results], total=len(items[:max_results]))


def _wanted(rows: Select[Any], dataset: Dataset, query: TextQuery | str | None, filter: Filter | None) -> Select[Any]:
    conditions = [] if query is None else [has_text(query)]
    return rows.select_from(Record).where(
        Record.dataset_id == dataset.id, *conditions, *([] if filter is None else [condition(filter)])
    )


def _count(status: Any) -> Select[Any]:
    return select(status, func.count()).group_by(status)


async def _counts(rows: Select[Any]) -> dict[str, int]:
    async with AsyncSessionLocal() as db:
        found = (await db.execute(rows)).all()
    return {"total": sum(count for _, count in found), **{str(status.value): count for status, count in found}}


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / lengths if lengths else 0.0
