"""From a push to a trained model: a real Prefect server and worker, a real Argilla, and somebody who answers in its web UI; or,
where there is no Chromium, by REST alone."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from argilla_server import LocalArgilla
from argilla_ui import CHROMIUM, Annotator, chromium
from deployed import Deployed, deploying
from usage import wait

from dpo_data.rows import Ranking
from dpo_data.rundir import FOLDERS, RunDir
from flows.curate import ANNOUNCED, EVENT

PROMPTS = 8


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    with deploying(tmp_path) as here:
        # Of two at a time the later one is cancelled, and one that the schedule has begun might be the first.
        collect = here.ask("/deployments/name/curate/collect")["id"]
        here.post(f"/deployments/{collect}/pause_deployment", {}).raise_for_status()
        yield here


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_push_to_trained_model_with_somebody_who_answers(
    deployed: Deployed, argilla: LocalArgilla, tiny_model: str
) -> None:
    (deployed.folder / "away").mkdir()
    known = json.loads((argilla.home / "credentials.json").read_text()) | {"api_url": "http://127.0.0.1:9"}
    (deployed.folder / "away" / "credentials.json").write_text(json.dumps(known))
    recipe, away = (
        _recipe(deployed.folder, name, home, tiny_model) for name, home in (("here", argilla.home), ("away", "away"))
    )

    pushed = flow_run(deployed, "curate/push", recipe)
    assert pushed["state"]["type"] == "COMPLETED"
    assert f"{PROMPTS} of {PROMPTS} await annotation at {argilla.url}/dataset/" in pushed["state"]["message"]
    [run] = [RunDir(path) for path in deployed.folder.glob("runs/curated-*")]

    lost = flow_run(deployed, "curate/collect", away)
    assert lost["state"]["type"] == "FAILED"
    assert lost["state"]["message"].startswith(f"runs/{run.path.name}: Argilla at http://127.0.0.1:9 cannot be reached")

    password, key = argilla.user("anna")
    submit(argilla, key, PROMPTS // 2)
    asked = flow_run(deployed, "curate/collect", recipe)
    assert asked["state"]["type"] == "COMPLETED"
    assert f"{PROMPTS // 2} of {PROMPTS} await annotation at {argilla.url}/dataset/" in asked["state"]["message"]

    if CHROMIUM:
        submit_by_hand(argilla, password)
    else:
        warnings.warn("NO CHROMIUM HERE: all answers are given by REST", stacklevel=1)
        submit(argilla, key, PROMPTS // 2)
    assert flow_run(deployed, "curate/collect", recipe)["state"]["message"] == f"runs/{run.path.name}: ranked"
    rankings = {
        row.prompt_id: dict(zip(row.completion_ids, row.scores, strict=True)) for row in run.stage("rank").rows(Ranking)
    }
    assert rankings == {one["metadata"]["prompt_id"]: scores(one) for one in records(argilla)}

    assert [one["state"]["type"] for one in wait(lambda: ended(deployed, 1), 300)] == ["COMPLETED"]
    assert run.stage("train").require()["pairs"] == run.stage("pair").require()["train"] > 0
    assert (run.path / "4-train" / "model").is_dir() and (run.path / "report.html").exists()

    before = files(run)
    again = json.loads((run.path / ANNOUNCED).read_text())
    deployed.post("/events", [{**again, "id": "00000000-0000-4000-8000-000000000001"}]).raise_for_status()
    assert [one["state"]["type"] for one in wait(lambda: ended(deployed, 2), 300)] == ["COMPLETED"] * 2
    assert files(run) == before
    assert again["event"] == EVENT


def _recipe(folder: Path, name: str, home: Path | str, model: str) -> str:
    """Eight prompts of three answers each, which anna ranks in the Argilla of that home, and the tiny model to train."""
    lines = [json.dumps({"prompt": f"Name {at} rivers of the world"}) for at in range(PROMPTS)]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    (folder / f"{name}.toml").write_text(
        f'name = "curated"\n[prompts]\npath = "mine.jsonl"\n[sample]\nn = 3\nmax_tokens = 64\n[sample.engine]\ntype = "echo"\n'
        f'[rank.judge]\ntype = "argilla"\ndataset = "curated"\nworkspace = "curation"\nhome = "{home}"\nannotators = ["anna"]\n'
        f'[pair]\ntest = 0.0\n[train]\nmodel = "{model}"\nbatch_size = 4\n'
    )
    return f"{name}.toml"


def flow_run(deployed: Deployed, name: str, recipe: str) -> dict[str, Any]:
    """A flow run of this deployment, once it has ended."""
    id = deployed.ask(f"/deployments/name/{name}")["id"]
    parameters = {"recipe": recipe, "run": "runs/{name}-{date}"}
    made = deployed.ask(f"/deployments/{id}/create_flow_run", parameters=parameters)

    def over() -> Any:
        found = deployed.ask(f"/flow_runs/{made['id']}")
        return found if found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    found: dict[str, Any] = wait(over, 300)
    return found


def ended(deployed: Deployed, count: int) -> list[dict[str, Any]] | None:
    """The flow runs that the event has started, as soon as so many of them have ended."""
    wanted = {"deployments": {"name": {"any_": ["ranked"]}}, "flow_runs": {"end_time": {"is_null_": False}}}
    found: list[dict[str, Any]] = deployed.ask("/flow_runs/filter", **wanted)
    done = [one for one in found if one["state"]["type"] not in ("SCHEDULED", "PENDING", "RUNNING")]
    return done if len(done) >= count else None


def records(argilla: LocalArgilla) -> list[dict[str, Any]]:
    """What stands in the dataset, with what was answered, as its owner sees it."""
    [dataset] = [one for one in argilla.ask("GET", "me/datasets")["items"] if one["name"] == "curated-3"]
    found: list[dict[str, Any]] = argilla.ask("GET", f"datasets/{dataset['id']}/records?include=responses")["items"]
    return found


def submit(argilla: LocalArgilla, key: str, count: int) -> None:
    """Rank so many records that nobody has ranked, the shortest answer first."""
    waiting = [one for one in records(argilla) if not one["responses"]]
    for record in waiting[:count]:
        lengths = {name: len(text) for name, text in record["fields"].items() if name.startswith("answer_")}
        ranks = [{"value": name, "rank": 1 + sum(other < n for other in lengths.values())} for name, n in lengths.items()]
        answer = {"status": "submitted", "values": {"ranking": {"value": ranks}}}
        argilla.ask("POST", f"records/{record['id']}/responses", key, json=answer)


def submit_by_hand(argilla: LocalArgilla, password: str) -> None:
    """Rank in the web UI all that is shown there: the second answer first, the others tied."""
    with chromium() as browser:
        anna = Annotator(browser)
        anna.sign_in(argilla.url, "anna", password)
        anna.open(argilla.url, "curated-3")
        while anna.record():
            anna.rank([2, 1, 2])
            anna.submit()


def scores(record: dict[str, Any]) -> dict[str, float]:
    """What the one response to a record says of each completion, as Borda has it: the share of the others that it beats."""
    [response] = record["responses"]
    ranks = {one["value"]: one["rank"] for one in response["values"]["ranking"]["value"]}
    order = dict(zip(record["metadata"]["answers"].split(","), sorted(ranks), strict=True))

    def beaten(rank: int) -> float:
        return sum((other > rank) + (other == rank) / 2 for other in ranks.values()) - 0.5

    return {id: beaten(ranks[slot]) / (len(ranks) - 1) for id, slot in order.items()}


def files(run: RunDir) -> dict[str, int]:
    """When each file of the stages was written."""
    return {str(path): path.stat().st_mtime_ns for name in FOLDERS for path in run.stage(name).path.rglob("*")}
