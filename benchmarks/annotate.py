"""Records to an Argilla and back: our client by turns with the SDK, and three people who answer while records are logged.

    python benchmarks/annotate.py [5000]

The server is `dpo-data argilla up`'s, in a new folder. A record holds a prompt and four answers, of 2 kB in all. Both clients
log and read the same records, each time to and from a new dataset of the same kind; the SDK's own objects are made beforehand.
"""

import contextlib
import io
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import argilla

from dpo_data.argilla import local
from dpo_data.argilla.access import Access, credentials
from dpo_data.argilla.client import Client
from dpo_data.argilla.dataset import Dataset, Layout, open_dataset, open_workspace
from dpo_data.argilla.exchange import push, read
from dpo_data.argilla.records import Record, fields, metadata, records_of
from dpo_data.rows import Completion, Sample

ROUNDS, PEOPLE = 3, 3
TEXT = 400
"""Characters of a prompt, and of each of its four answers."""


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        access = local.up(home, 0)
        try:
            records = made(count)
            by_turns(access, records)
            beside_people(home, access, records)
        finally:
            local.down(home)


def made(count: int) -> list[Record]:
    draw = random.Random(0)
    words = [
        f"{'bcdfg'[a]}{'aeiou'[b]}{'lmnrs'[c]}{'tok'[d]}"
        for a in range(5)
        for b in range(5)
        for c in range(5)
        for d in range(3)
    ]

    def text() -> str:
        return " ".join(draw.choices(words, k=TEXT // 4))[:TEXT]

    def sample(at: int) -> Sample:
        answers = [Completion(f"{at}-{n}", n, text(), "stop", None, None, "m", score=n / 4) for n in range(4)]
        return Sample(f"prompt-{at}", [{"role": "user", "content": text()}], f"file:{at}", answers, None)

    return [record for at in range(count) for record in records_of(sample(at), "ranking", 0)]


def new(client: Client, name: str, min_submitted: int = 1) -> Dataset:
    layout = Layout(name, 4, "ranking", False, True, min_submitted, "Rank the answers.")
    return open_dataset(client, open_workspace(client, "dpo-data"), layout)


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_turns(access: Access, records: list[Record]) -> None:
    client = Client(access)
    sdk = argilla.Argilla(api_url=access.url, api_key=access.key)
    told: dict[str, list[float]] = {"our log": [], "SDK log": [], "our read": [], "SDK read": []}
    for turn in range(ROUNDS):
        ours = new(client, f"ours-{turn}")
        told["our log"].append(seconds(lambda ours=ours: push(client, ours, records, {}, suggest=False)))  # type: ignore[misc]
        theirs = sdk.datasets(name=new(client, f"sdk-{turn}").layout.name, workspace="dpo-data")
        objects = [argilla.Record(id=one.id, fields=fields(one, markdown=True), metadata=metadata(one)) for one in records]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            told["SDK log"].append(seconds(lambda: theirs.records.log(objects)))  # noqa: B023
        told["our read"].append(seconds(lambda ours=ours: check(len(read(client, ours)), records)))  # type: ignore[misc]
        told["SDK read"].append(seconds(lambda: check(len(list(theirs.records(with_responses=True))), records)))  # noqa: B023
    for what, times in told.items():
        rates = sorted(len(records) / one for one in times)
        print(
            f"{what:9} {len(records):,} records: {median(rates):,.0f} records/s ({rates[0]:,.0f} to {rates[-1]:,.0f})",
            flush=True,
        )
    client.close()


def check(found: int, records: list[Record]) -> None:
    if found != len(records):
        sys.exit(f"{found} of {len(records)} records came back")


def beside_people(home: Path, access: Access, records: list[Record]) -> None:
    """Each takes ten of what is pending at a time, and answers them one by one, without thinking."""
    client = Client(access)
    dataset = new(client, "people", min_submitted=PEOPLE)
    names = [f"annotator-{at}" for at in range(PEOPLE)]
    for name in names:
        local.add_user(home, name)
    known = (credentials(home) or {})["users"]
    over, latencies = threading.Event(), [list[float]() for _ in names]
    with ThreadPoolExecutor() as pool:
        working = [
            pool.submit(answer, Client(Access(access.url, known[name]["api_key"])), dataset, over, latencies[at])
            for at, name in enumerate(names)
        ]
        logged = seconds(lambda: push(client, dataset, records, {}, suggest=False))
        over.set()
        for one in working:
            one.result()
    there = read(client, dataset)
    check(len(there), records)
    answered, kept = sum(map(len, latencies)), sum(len(one.responses) for one in there.values())
    times = sorted(one for person in latencies for one in person)
    print(
        f"people    {PEOPLE} answered while {len(records):,} records were logged in {logged:.1f} s: {answered:,} answers, "
        f"{kept:,} kept; an answer took {median(times):.2f} s, the slowest {times[-1]:.2f} s",
        flush=True,
    )
    if "locked" in (home / "server.log").read_text() or kept != answered:
        sys.exit("something was lost or locked")
    client.close()


def answer(client: Client, dataset: Dataset, over: threading.Event, latencies: list[float]) -> None:
    pending = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["pending"]}
    ranking = [{"value": slot, "rank": rank} for rank, slot in enumerate(dataset.layout.slots, 1)]
    said = {"status": "submitted", "values": {"ranking": {"value": ranking}}}
    while not over.is_set():
        path = f"me/datasets/{dataset.id}/records/search?limit=10"
        for one in client.post(path, {"filters": {"and": [pending]}})["items"]:
            latencies.append(seconds(lambda one=one: client.post(f"records/{one['record']['id']}/responses", said)))  # type: ignore[misc]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)
