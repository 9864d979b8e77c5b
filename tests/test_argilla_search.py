"""Search on the server's own database: every filter, sort and query gives what plain Python gives over the same records."""

import random
import socket
import sqlite3
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from uuid import uuid4

import pytest
from argilla_server import LocalArgilla, log_records, open_for_answers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow
Record = dict[str, Any]

WORDS = """
    äpfel ÄPFEL Apfel birne Birnen Ελλάδα ΕΛΛΆΔΑ σοφός ΣΟΦΌΣ москва МОСКВА ёлка naïve naive 日本語テスト 日本 본다 나는본다
    ภาษาไทย ไทย don't
    dont don state-of-the-art state art C++ c "quoted" quoted NEAR( NEAR a* a OR NOT AND ( - -- : ^ 100% 100 % user
    snake_case snake 😀 text:a {a ' " iPhoneケース fields record_words x'
""".split()  # noqa: SIM905
UNSPACED = "日本語テスト본다나는ภาษาไทยケース"
SOURCES = ["web", "forum", "книга", "a,b"]
STATUSES = ["draft", "submitted", "discarded"]


@dataclass(frozen=True, repr=False)
class Made:
    """A dataset with some of everything, its records as the server lists them, and three annotators' keys by their ids."""

    server: LocalArgilla
    dataset: str
    records: list[Record]
    users: dict[str, str]

    def search(self, body: Record, user: str | None = None, **page: int) -> Record:
        """As the owner, or as one of the annotators."""
        path = f"{'me/' if user else ''}datasets/{self.dataset}/records/search"
        key = self.users[user] if user else None
        found: Record = self.server.ask("POST", path, key, json=body, params={"limit": 1000, **page})
        return found

    def ids(self, body: Record, user: str | None = None, **page: int) -> list[str]:
        found = self.search(body, user, **page)
        return [one["record"]["id"] for one in found["items"]]


def dataset(server: LocalArgilla, workspace: str) -> str:
    """A published dataset with a field, question and metadata of each kind."""
    made = server.ask("POST", "datasets", json={"name": f"search-{uuid4()}", "workspace_id": workspace})["id"]

    def add(kind: str, name: str, settings: Record, **more: Any) -> None:
        server.ask("POST", f"datasets/{made}/{kind}", json={"name": name, "title": name, "settings": settings, **more})

    options = [{"value": value, "text": value} for value in ("one", "two", "tie")]
    add("fields", "prompt", {"type": "chat"}, required=False)
    add("fields", "answer", {"type": "text"}, required=True)
    add("fields", "picture", {"type": "image"}, required=False)
    add("questions", "quality", {"type": "rating", "options": [{"value": value} for value in range(1, 6)]}, required=True)
    add("questions", "better", {"type": "label_selection", "options": options}, required=False)
    add("questions", "faults", {"type": "multi_label_selection", "options": options}, required=False)
    add("questions", "comment", {"type": "text"}, required=False)
    for name, kind in (("source", "terms"), ("longest", "integer"), ("margin", "float")):
        server.ask(
            "POST", f"datasets/{made}/metadata-properties", json={"name": name, "title": name, "settings": {"type": kind}}
        )
    server.ask("POST", f"datasets/{made}/vectors-settings", json={"name": "v", "title": "v", "dimensions": 3})
    server.ask("PUT", f"datasets/{made}/publish")
    return str(made)


def random_values(draw: random.Random) -> Record:
    said: Record = {"quality": draw.randint(1, 5), "better": draw.choice(["one", "two", "tie"])}
    said["faults"] = draw.sample(["one", "two", "tie"], draw.randint(1, 3))
    return {name: {"value": value} for name, value in said.items() if draw.random() < 0.7}


def random_record(draw: random.Random, questions: dict[str, str], users: list[str]) -> Record:
    def words(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    suggestions = [
        {"question_id": questions[name], "value": said["value"], "agent": draw.choice(["judge-1", "judge-2", None])}
        | ({"score": draw.random()} if name != "faults" and draw.random() < 0.7 else {})
        | ({"type": draw.choice(["model", "human"])} if draw.random() < 0.7 else {})
        for name, said in random_values(draw).items()
    ]
    metadata: Record = {"source": draw.sample(SOURCES, draw.randint(1, 2)) if draw.random() < 0.3 else draw.choice(SOURCES)}
    metadata |= {"longest": draw.randint(-5, 5), "margin": draw.randint(-20, 20) / 4}
    responses = [
        {
            "user_id": user,
            "status": draw.choice(STATUSES),
            "values": {"quality": {"value": draw.randint(1, 5)}} | random_values(draw),
        }
        for user in users
    ]
    return {
        "fields": {
            "prompt": [{"role": draw.choice(["user", "assistant"]), "content": words(3)} for _ in range(draw.randint(1, 3))],
            "answer": words(6),
            "picture": "data:image/png;base64,quoted",
        },
        "external_id": uuid4().hex,
        "metadata": {name: value for name, value in metadata.items() if draw.random() < 0.8},
        "suggestions": suggestions,
        "responses": [one for one in responses if draw.random() < 0.5],
        "vectors": {"v": [draw.uniform(-1, 1) for _ in range(3)]} if draw.random() < 0.9 else {},
    }


@pytest.fixture(scope="module")
def made(argilla: LocalArgilla) -> Iterator[Made]:
    draw = random.Random(7)
    names = ["ann", "bob", "cid"]
    keys = {name: argilla.user(name)[1] for name in names}
    ids = {one["username"]: one["id"] for one in argilla.ask("GET", "users")["items"]}
    (workspace,) = [one["id"] for one in argilla.ask("GET", "me/workspaces")["items"] if one["name"] == "dpo-data"]
    name = dataset(argilla, workspace)
    other = dataset(argilla, workspace)  # whose records must never be found
    for where, count in ((name, 120), (other, 20)):
        questions = {one["name"]: one["id"] for one in argilla.ask("GET", f"datasets/{where}/questions")["items"]}
        items = [random_record(draw, questions, [ids[name] for name in names]) for _ in range(count)]
        argilla.ask("POST", f"datasets/{where}/records/bulk", json={"items": items})
    listed = argilla.ask("GET", f"datasets/{name}/records", params={"include": "responses,suggestions,vectors", "limit": 1000})
    questions = {one["id"]: one["name"] for one in argilla.ask("GET", f"datasets/{name}/questions")["items"]}
    records = [{**one, "suggestions": {questions[s["question_id"]]: s for s in one["suggestions"]}} for one in listed["items"]]
    assert len(records) == 120
    yield Made(argilla, name, records, {ids[name]: keys[name] for name in names})


# ---- plain Python ---------------------------------------------------------------------------------------------------------


def fold(text: str) -> str:
    """Without case and accents."""
    return "".join(one for one in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(one))


def tokens(text: str) -> list[str]:
    split = groupby(fold(text), key=lambda one: unicodedata.category(one)[0] in "LN")
    return ["".join(run) for is_word, run in split if is_word]


def says(text: str, word: str) -> bool:
    if any(one in UNSPACED for one in word) or not tokens(word):
        return word.lower() in text.lower()
    wanted, here = tokens(word), tokens(text)
    return any(here[at : at + len(wanted)] == wanted for at in range(len(here)))


def texts(record: Record, field: str | None) -> list[str]:
    chat = [message["content"] for message in record["fields"]["prompt"]] if field in (None, "prompt") else []
    return [*chat, *([record["fields"]["answer"]] if field in (None, "answer") else [])]


def has_words(record: Record, query: str, field: str | None) -> bool:
    return all(any(says(text, word) for text in texts(record, field)) for word in query.split())


def values(record: Record, scope: Record, user: str | None) -> list[Any]:
    """What a scope names of a record: nothing, one thing, or several."""
    match scope["entity"]:
        case "record":
            said = record[scope["property"]]
        case "metadata":
            said = (record["metadata"] or {}).get(scope["metadata_property"])
        case "suggestion":
            said = record["suggestions"].get(scope["question"], {}).get(scope["property"])
        case _:
            theirs = [one for one in record["responses"] if user in (None, one["user_id"])]
            if "property" in scope:
                return [one["status"] for one in theirs] or ["pending"]
            found = [(one["values"] or {}).get(scope["question"], {}).get("value") for one in theirs]
            return [value for one in found for value in (one if isinstance(one, list) else [one]) if value is not None]
    return [] if said is None else said if isinstance(said, list) else [said]


def passes(record: Record, wanted: Record, user: str | None) -> bool:
    found = values(record, wanted["scope"], user)
    if wanted["type"] == "terms":
        return any(str(value) in wanted["values"] for value in found)
    least, most = wanted.get("ge"), wanted.get("le")
    return any((least is None or value >= least) and (most is None or value <= most) for value in found)


def key(record: Record, order: Record, user: str | None) -> Any:
    """None sorts last."""
    found = values(record, order["scope"], user)
    if order["scope"]["entity"] == "response":
        if "property" in order["scope"]:
            found = [value for value in found if value != "pending"]
        else:
            return round(sum(found) / len(found), 9) if found else None
    return None if not found else max(found) if order["order"] == "desc" else min(found)


# ---- what is asked --------------------------------------------------------------------------------------------------------

LABELS = st.lists(st.sampled_from(["one", "two", "tie"]), min_size=1, max_size=2)
NUMBERS = [
    {"entity": "metadata", "metadata_property": "longest"},
    {"entity": "metadata", "metadata_property": "margin"},
    {"entity": "response", "question": "quality"},
    {"entity": "suggestion", "question": "quality", "property": "value"},
    {"entity": "suggestion", "question": "better", "property": "score"},
]
SORTS = [
    *NUMBERS,
    {"entity": "metadata", "metadata_property": "source"},
    {"entity": "suggestion", "question": "better", "property": "value"},
    {"entity": "suggestion", "question": "faults", "property": "value"},
    {"entity": "suggestion", "question": "quality", "property": "agent"},
    {"entity": "suggestion", "question": "quality", "property": "type"},
    {"entity": "response", "property": "status"},
    *({"entity": "record", "property": name} for name in ("id", "external_id", "inserted_at", "updated_at", "status")),
]


def terms(scope: Record, choices: list[str]) -> st.SearchStrategy[Record]:
    wanted = st.lists(st.sampled_from(choices), min_size=1, max_size=3, unique=True)
    return wanted.map(lambda values: {"type": "terms", "scope": scope, "values": values})


@st.composite
def ranges(draw: st.DrawFn) -> Record:
    ends = sorted(draw(st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=2, max_size=2)))
    kept = draw(st.sampled_from([("ge",), ("le",), ("ge", "le")]))
    bounds = {name: end for name, end in zip(("ge", "le"), ends, strict=True) if name in kept}
    return {"type": "range", "scope": draw(st.sampled_from(NUMBERS)), **bounds}


FILTERS = st.one_of(
    ranges(),
    terms({"entity": "metadata", "metadata_property": "source"}, [*SOURCES, "a", "none"]),
    terms({"entity": "metadata", "metadata_property": "longest"}, ["-1", "0", "3"]),
    terms({"entity": "suggestion", "question": "better", "property": "value"}, ["one", "two", "tie"]),
    terms({"entity": "suggestion", "question": "faults", "property": "value"}, ["one", "two", "tie"]),
    terms({"entity": "suggestion", "question": "better", "property": "agent"}, ["judge-1", "judge-2", "judge"]),
    terms({"entity": "suggestion", "question": "better", "property": "type"}, ["model", "human"]),
    terms({"entity": "response", "question": "better"}, ["one", "two", "tie"]),
    terms({"entity": "response", "question": "faults"}, ["one", "two", "tie"]),
    terms({"entity": "response", "question": "quality"}, ["1", "5"]),
    terms({"entity": "response", "property": "status"}, [*STATUSES, "pending"]),
    terms({"entity": "record", "property": "status"}, ["pending", "completed"]),
)
QUERIES = st.tuples(
    st.lists(st.sampled_from([*WORDS, "äpf", "语", "assistant", "png", "nothing"]), min_size=1, max_size=2).map(" ".join),
    st.sampled_from([None, None, "prompt", "answer"]),
)
ORDERS = st.lists(
    st.builds(lambda scope, order: {"scope": scope, "order": order}, st.sampled_from(SORTS), st.sampled_from(["asc", "desc"])),
    max_size=2,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    query=st.none() | QUERIES,
    filters=st.lists(FILTERS, max_size=3),
    orders=ORDERS,
    who=st.sampled_from([None, 0, 1, 2]),
)
def test_a_search_is_what_plain_python_finds(
    made: Made, query: tuple[str, str | None] | None, filters: list[Record], orders: list[Record], who: int | None
) -> None:
    user = None if who is None else list(made.users)[who]
    body: Record = {}
    if query is not None:
        body["query"] = {"text": {"q": query[0], **({"field": query[1]} if query[1] else {})}}
    if filters:
        body["filters"] = {"and": filters}
    if orders:
        body["sort"] = orders
    wanted = {
        one["id"]: one
        for one in made.records
        if (query is None or has_words(one, *query)) and all(passes(one, each, user) for each in filters)
    }
    answer = made.search(body, user)
    found = [one["record"]["id"] for one in answer["items"]]
    assert answer["total"] == len(wanted) and len(found) == len(set(found))
    assert set(found) == set(wanted)
    expected = list(wanted.values())
    for order in reversed(orders):
        there = [one for one in expected if key(one, order, user) is not None]
        missing = [one for one in expected if key(one, order, user) is None]
        expected = sorted(there, key=lambda one: key(one, order, user), reverse=order["order"] == "desc") + missing
    keys = [[key(one, order, user) for order in orders] for one in expected]
    assert [[key(wanted[one], order, user) for order in orders] for one in found] == keys


def test_records_are_found_by_their_own_ids_and_times(made: Made) -> None:
    def among(name: str, **wanted: Any) -> list[str]:
        scope = {"entity": "record", "property": name}
        kind = "terms" if "values" in wanted else "range"
        return made.ids({"filters": {"and": [{"type": kind, "scope": scope, **wanted}]}})

    some = made.records[10:13]
    assert among("id", values=[one["id"] for one in some] + ["no-such"]) == [one["id"] for one in some]
    assert among("external_id", values=[some[0]["external_id"]]) == [some[0]["id"]]
    times = sorted(one["inserted_at"] for one in made.records)
    later = {one["id"] for one in made.records if one["inserted_at"] >= times[60]}
    for bound in (times[60], f"{times[60]}Z", f"{times[60]}+00:00"):
        assert set(among("inserted_at", ge=bound)) == later
    assert set(among("inserted_at", values=[times[60]])) == {
        one["id"] for one in made.records if one["inserted_at"] == times[60]
    }
    assert len(among("updated_at", ge=0)) == 120 and not among("updated_at", le=0)  # milliseconds since 1970


def test_a_bound_that_is_no_number_is_refused(made: Made) -> None:
    for scope, bound in ((NUMBERS[0], "many"), ({"entity": "record", "property": "inserted_at"}, "yesterday")):
        with pytest.raises(AssertionError, match=r"422 .*A range cannot be read"):
            made.search({"filters": {"and": [{"type": "range", "scope": scope, "ge": bound}]}})


def test_everybody_has_a_queue_of_their_own(made: Made) -> None:
    """The same records in another order for each, which stays the same from page to page."""
    pending = {
        "filters": {"and": [{"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}]}
    }
    orders = {user: made.ids({}, user) for user in made.users}
    assert len({tuple(order) for order in orders.values()}) == 3
    for user, order in orders.items():
        assert sorted(order) == sorted(one["id"] for one in made.records)
        assert [one for at in range(0, 120, 7) for one in made.ids({}, user, offset=at, limit=7)] == order
        answered = {one["id"] for one in made.records if user in {said["user_id"] for said in one["responses"]}}
        assert made.ids(pending, user) == [one for one in order if one not in answered]
    assert made.ids({}) == made.ids({}, offset=0) != orders[next(iter(made.users))]


def test_progress_and_metrics_count_what_is_there(made: Made) -> None:
    server, path = made.server, f"datasets/{made.dataset}"
    done = [one for one in made.records if one["status"] == "completed"]
    total = server.ask("GET", f"{path}/progress")
    assert (total["total"], total["completed"], total["pending"]) == (120, len(done), 120 - len(done)) and 0 < len(done) < 120
    for user, key in made.users.items():
        statuses = [said["status"] for one in made.records for said in one["responses"] if said["user_id"] == user]
        mine = server.ask("GET", f"me/{path}/metrics", key)["responses"]
        assert (mine["total"], mine["pending"]) == (120, 120 - len(statuses))
        assert [mine[name] for name in STATUSES] == [statuses.count(name) for name in STATUSES]
    for one in server.ask("GET", f"me/{path}/metadata-properties")["items"]:
        metrics = server.ask("GET", f"metadata-properties/{one['id']}/metrics")
        scope = {"entity": "metadata", "metadata_property": one["name"]}
        found = [value for record in made.records for value in values(record, scope, None)]
        if one["name"] == "source":
            assert metrics["total"] == len(found)
            assert {term["term"]: term["count"] for term in metrics["values"]} == {term: found.count(term) for term in SOURCES}
        else:
            assert (metrics["min"], metrics["max"]) == (min(found), max(found))


@pytest.mark.parametrize("order", ["most_similar", "least_similar"])
@pytest.mark.parametrize("of_record", [False, True])
def test_similar_records(made: Made, order: str, of_record: bool) -> None:
    with_vector = [one for one in made.records if one["vectors"]]
    asked = with_vector[0] if of_record else {"id": None, "vectors": {"v": [1.0, -0.5, 0.25]}}
    sign = 1 if order == "most_similar" else -1

    def score(one: Record) -> float:
        a, b = (each["vectors"]["v"] for each in (asked, one))
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return float((1 + sign * dot / (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5) / 2)

    query = {"name": "v", "order": order} | ({"record_id": asked["id"]} if of_record else {"value": asked["vectors"]["v"]})
    found = made.search({"query": {"vector": query}}, limit=9, offset=3)["items"]
    expected = sorted((one for one in with_vector if one["id"] != asked["id"]), key=score, reverse=True)[3:12]
    assert [one["record"]["id"] for one in found] == [one["id"] for one in expected]
    assert [one["query_score"] for one in found] == pytest.approx([score(one) for one in expected])


def test_jobs_run_in_the_server_itself(made: Made) -> None:
    """One is begun where it changes how many answers complete a record, and one that asks the Hub fails, as there is none."""
    server = made.server
    dataset = open_for_answers(server)
    log_records(server, dataset, 3, 50)
    for one in server.ask("GET", f"datasets/{dataset}/records")["items"][:2]:
        said = {"status": "submitted", "values": {"quality": {"value": 3}}}
        server.ask("POST", f"records/{one['id']}/responses", next(iter(made.users.values())), json=said)

    def completed() -> int:
        return int(server.ask("GET", f"datasets/{dataset}/progress")["completed"])

    assert completed() == 0
    server.ask("PATCH", f"datasets/{dataset}", json={"distribution": {"strategy": "overlap", "min_submitted": 1}})
    while completed() < 2:
        time.sleep(0.05)
    assert completed() == 2
    hub = {"name": "no/body", "subset": "default", "split": "train", "private": False, "token": "t"}
    job = server.ask("POST", f"datasets/{dataset}/export", json=hub)
    while (state := server.ask("GET", f"jobs/{job['id']}")["status"]) == "started":
        time.sleep(0.05)
    assert state == "failed" and "a job has failed" in (server.home / "server.log").read_text()
    with pytest.raises(AssertionError, match="404"):
        server.ask("GET", "jobs/none")


def test_a_webhook_is_told_of_records(made: Made) -> None:
    dataset = open_for_answers(made.server)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/hook"
        hook = made.server.ask("POST", "webhooks", json={"url": url, "events": ["record.created"]})
        try:
            with ThreadPoolExecutor() as pool:
                logging = pool.submit(log_records, made.server, dataset, 1, 50)
                with listening.accept()[0] as one:
                    said = one.recv(65_536)
                    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                assert said.startswith(b"POST /hook ") and logging.result() == 1
        finally:
            made.server.ask("DELETE", f"webhooks/{hook['id']}")


def test_the_index_follows_the_records(made: Made) -> None:
    """Updated, updated in bulk and deleted records, and a deleted dataset."""
    server = made.server
    (workspace,) = [one["id"] for one in server.ask("GET", "me/workspaces")["items"] if one["name"] == "dpo-data"]
    name = dataset(server, workspace)

    def found(word: str) -> list[str]:
        items = server.ask("POST", f"datasets/{name}/records/search", json={"query": {"text": {"q": word}}})["items"]
        return sorted(one["record"]["external_id"] for one in items)

    def log(method: str, **says: str) -> None:
        fields = {key: {"answer": "an answer", "prompt": [{"role": "user", "content": text}]} for key, text in says.items()}
        items = [{"external_id": key, "fields": field} for key, field in fields.items()]
        server.ask(method, f"datasets/{name}/records/bulk", json={"items": items})

    log("POST", a="plums and pears", b="pears", c="figs")
    assert (found("pears"), found("figs"), found("user")) == (["a", "b"], ["c"], [])
    log("PUT", b="quinces", d="pears")
    assert (found("pears"), found("quinces")) == (["a", "d"], ["b"])
    ids = {one["external_id"]: one["id"] for one in server.ask("GET", f"datasets/{name}/records")["items"]}
    server.ask("PATCH", f"records/{ids['a']}", json={"fields": {"answer": "cherries"}})
    assert (found("pears"), found("plums"), found("cherries")) == (["d"], [], ["a"])
    server.ask("PATCH", f"records/{ids['a']}", json={"metadata": {"source": "web"}})
    assert found("cherries") == ["a"]
    server.ask("DELETE", f"datasets/{name}/records", params={"ids": ids["d"]})
    assert found("pears") == []
    server.ask("DELETE", f"datasets/{name}")
    with sqlite3.connect(f"{(server.home / 'argilla.db').as_uri()}?mode=ro", uri=True) as database:
        left = database.execute("SELECT count(*) FROM record_texts WHERE record_id NOT IN (SELECT id FROM records)").fetchone()
        matched = database.execute(
            "SELECT count(*) FROM record_words WHERE record_words MATCH 'cherries OR quinces'"
        ).fetchone()
    assert (left, matched) == ((0,), (0,))
