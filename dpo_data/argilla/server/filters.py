"""Conditions and sort keys over records: on their properties, their metadata, and suggestions and responses for them."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from argilla_server.enums import ResponseStatusFilter, SortOrder
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Question, Record, Response, Suggestion
from argilla_server.search_engine import (
    AndFilter,
    Filter,
    FilterScope,
    MetadataFilterScope,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SuggestionFilterScope,
    TermsFilter,
)
from sqlalchemy import ColumnElement, Text, and_, cast, exists, func, not_, or_, select, true, type_coerce
from sqlalchemy.orm import aliased

_count = itertools.count()


def values(json: ColumnElement[Any], *keys: str) -> Any:
    """The value, or each of a list's, at a path of a JSON column: a table with the columns `value` and `type`."""
    path = "$" + "".join(f'."{key}"' for key in keys)
    return func.json_each(json, path).table_valued("value", "type", name=f"values_{next(_count) % 1000}")


def condition(wanted: Filter) -> ColumnElement[bool]:
    """That a record passes a filter. Raises UnprocessableEntityError where a bound is no number or date."""
    if isinstance(wanted, AndFilter):
        return and_(true(), *map(condition, wanted.filters))
    match wanted.scope:
        case RecordFilterScope():
            return _of_record(wanted)
        case MetadataFilterScope(metadata_property=name):
            each = values(Record.metadata_, name)
            return exists(select(1).select_from(each).where(_fits(each.c.value, wanted)))
        case SuggestionFilterScope():
            return _of_suggestion(wanted)
        case _:
            return _of_response(wanted)


def sort_key(order: Order) -> ColumnElement[Any]:
    """What records are sorted by, those without it last. Of several values the least counts upwards, the greatest downwards."""
    downwards = order.order == SortOrder.desc
    key = _key(order.scope, func.max if downwards else func.min)
    return (key.desc() if downwards else key.asc()).nulls_last()


def _fits(value: ColumnElement[Any], wanted: Filter, read: Callable[[Any], Any] = float) -> ColumnElement[bool]:
    """That a value is among the terms, which always come as strings, or lies in the range, whose bounds `read` reads."""
    if isinstance(wanted, TermsFilter):
        return cast(value, Text).in_([str(term) for term in wanted.values])
    try:
        least, most = (None if bound is None else read(bound) for bound in (wanted.ge, wanted.le))
    except (ValueError, OverflowError, OSError) as error:
        raise UnprocessableEntityError(f"A range cannot be read: {error}") from None
    return and_(true() if least is None else value >= least, true() if most is None else value <= most)


def _time(given: Any) -> datetime:
    """As the database keeps times: in UTC, without saying so. From ISO 8601, or milliseconds since 1970."""
    time = datetime.fromisoformat(given) if isinstance(given, str) else datetime.fromtimestamp(given / 1000, UTC)
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _of_record(wanted: Filter) -> ColumnElement[bool]:
    name = str(wanted.scope.property)
    if name == "id" and isinstance(wanted, TermsFilter):
        return type_coerce(Record.id, Text).in_([term.replace("-", "").lower() for term in wanted.values])
    if name.endswith("_at"):
        if isinstance(wanted, TermsFilter):
            return or_(*[_fits(getattr(Record, name), RangeFilter(wanted.scope, term, term), _time) for term in wanted.values])
        return _fits(getattr(Record, name), wanted, _time)
    return _fits(cast(getattr(Record, name), Text), wanted, str)


def _of_suggestion(wanted: Filter) -> ColumnElement[bool]:
    suggestion, its, question = _suggestion(wanted.scope)
    name = _property(wanted.scope)
    if name in ("agent", "type"):
        return exists(
            select(1).select_from(suggestion).join(question).where(its, _fits(getattr(suggestion, name), wanted, str))
        )
    each = values(getattr(suggestion, name))
    return exists(select(1).select_from(suggestion).join(question).join(each, true()).where(its, _fits(each.c.value, wanted)))


def _suggestion(scope: SuggestionFilterScope) -> tuple[Any, ColumnElement[bool], Any]:
    """A record's suggestion for a question: the table, the condition that it is the one, and the table of questions."""
    suggestion, question = aliased(Suggestion), aliased(Question)
    its = and_(suggestion.record_id == Record.id, question.id == suggestion.question_id, question.name == scope.question)
    return suggestion, its, question


def _property(scope: SuggestionFilterScope) -> str:
    return scope.property if scope.property in ("score", "agent", "type") else "value"


def _of_response(wanted: Filter) -> ColumnElement[bool]:
    """Of the user who searches, where the search is somebody's own; else of anybody."""
    response, its = _response(wanted.scope)
    if wanted.scope.question:
        each = values(response.values, wanted.scope.question, "value")
        return exists(select(1).select_from(response).join(each, true()).where(its, _fits(each.c.value, wanted)))
    if not isinstance(wanted, TermsFilter):
        raise UnprocessableEntityError("A response has no property with a range")
    statuses = [term for term in wanted.values if term != ResponseStatusFilter.pending]
    some = exists(select(1).select_from(response).where(its, cast(response.status, Text).in_(statuses)))
    if len(statuses) == len(wanted.values):
        return some
    return or_(some, not_(exists(select(1).select_from(response).where(its))))


def _response(scope: ResponseFilterScope) -> tuple[Any, ColumnElement[bool]]:
    response = aliased(Response)
    return response, and_(response.record_id == Record.id, response.user_id == scope.user.id if scope.user else true())


def _key(scope: FilterScope, one: Callable[..., ColumnElement[Any]]) -> ColumnElement[Any]:
    match scope:
        case RecordFilterScope(property=name):
            column: ColumnElement[Any] = getattr(Record, str(name))
            return column
        case MetadataFilterScope(metadata_property=name):
            each = values(Record.metadata_, name)
            return select(one(each.c.value)).select_from(each).scalar_subquery()
        case SuggestionFilterScope():
            suggestion, its, question = _suggestion(scope)
            said, rows = getattr(suggestion, _property(scope)), select().select_from(suggestion).join(question)
            if _property(scope) in ("agent", "type"):
                return rows.add_columns(said).where(its).scalar_subquery()
            each = values(said)
            return rows.join(each, true()).add_columns(one(each.c.value)).where(its).scalar_subquery()
        case _:
            response, its = _response(scope)
            if not scope.question:
                return select(one(response.status)).where(its).scalar_subquery()
            each = values(response.values, scope.question, "value")
            mean = select(func.avg(each.c.value)).select_from(response).join(each, true())
            return mean.where(its, each.c.type.in_(["integer", "real"])).scalar_subquery()
