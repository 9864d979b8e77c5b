"""Deployment: what prefect.yaml says, and one real server and worker, from `dpo-data deploy` to Ctrl-C."""

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import yaml
from deployed import Deployed, deploying, environment, request
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.events import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint
from usage import wait

from dpo_data import pipeline
from dpo_data.config import load
from dpo_data.errors import DpoDataError
from dpo_data.rundir import RunDir
from flows import curate, deploy

NAME = "sample-and-train/nightly"


def test_every_key_of_prefect_yaml_is_one_that_prefect_knows() -> None:
    """Prefect ignores all others without a word."""
    table = yaml.safe_load((deploy.SHIPPED / "prefect.yaml").read_text())
    assert not _unknown(table, PrefectYamlModel)
    for one in table["deployments"]:
        assert not _unknown(one, DeploymentConfig)
        assert not _unknown(one["work_pool"], WorkPoolConfig)
        assert not _unknown(one["concurrency_limit"], ConcurrencyLimitSpec)
        assert not [key for schedule in one["schedules"] for key in _unknown(schedule, RawScheduleConfig)]
        triggers = [dict(trigger) for trigger in one.get("triggers", [])]
        assert not [key for trigger in triggers for key in _unknown(trigger, DeploymentEventTrigger)]
        flow = load_flow_from_entrypoint(str(deploy.SHIPPED / one["entrypoint"]))
        assert deploy.full_name(one) == f"{flow.name}/{one['name']}"
        for given in (one["parameters"], *(trigger["parameters"] for trigger in triggers)):
            assert not set(given) - set(flow.parameters.properties)
        assert triggers or load(one["parameters"]["recipe"]), "the recipe that it names is there"


def test_what_starts_the_training_is_what_curate_says() -> None:
    [trigger] = [one for deployment in deploy.deployments()["deployments"] for one in deployment.get("triggers", [])]
    assert trigger["expect"] == [curate.EVENT]


def test_a_deployment_or_a_trigger_that_prefect_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "_prefect", lambda *arguments: "All done")
    there = {"id": "d1"}
    monkeypatch.setattr(deploy, "_get", lambda url, path: there if "/deployments/name/" in path else [{"name": "other"}])
    with pytest.raises(DpoDataError, match=r"The trigger 'ranked' of sample-and-train/ranked is not on the server\."):
        deploy._deploy("http://127.0.0.1:1/api")

    monkeypatch.setattr(deploy, "_get", lambda url, path: None if path.endswith("curate/collect") else there)
    with pytest.raises(DpoDataError, match=r"The deployment curate/collect is not on the server: All done"):
        deploy._deploy("http://127.0.0.1:1/api")


def _unknown(table: dict[str, Any], model: Any) -> set[str]:
    return set(table) - {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://me:p@ss@prefect.invalid:4200/api", "No Prefect server answers at http://prefect.invalid:4200/api."),
        ("http://prefect.invalid:4200/api", "No Prefect server answers at http://prefect.invalid:4200/api."),
        ("http://127.0.0.1:{taken}/api", "The Prefect server ended: "),
    ],
)
def test_a_server_that_cannot_be_had_is_told_in_one_line(tmp_path: Path, url: str, says: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        env = environment(tmp_path) | {"PREFECT_API_URL": url.format(taken=taken.getsockname()[1])}
        done = subprocess.run([sys.executable, deploy.__file__], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith(f"dpo-data deploy: error: {says}") and done.stderr.count("\n") == 1


def test_a_server_that_fails_later_is_told_without_what_httpx_quotes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: Any) -> int:
        raise httpx.ReadTimeout("secret words")

    monkeypatch.setattr(deploy, "_serve", fail)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    assert deploy.main(["--port", "4321"]) == 1
    said = capsys.readouterr().err
    assert said == "dpo-data deploy: error: no Prefect server answers at http://127.0.0.1:4321/api\n"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """In a folder with modules of a stranger's, each with the name of one that is imported there."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("prefect", "dpo_data", "matplotlib"):
        (folder / f"{name}.py").write_text("raise SystemExit('taken over')\n")
    with deploying(folder) as here:
        yield here


@pytest.mark.slow
def test_no_page_but_the_server_s_own_is_given_its_answers(deployed: Deployed) -> None:
    own = deployed.url.removesuffix("/api")
    for origin, allowed in ((own, own), ("http://evil.example", None), ("null", None)):
        answer = request("GET", f"{deployed.url}/health", headers={"Origin": origin})
        assert answer.is_success and answer.headers.get("Access-Control-Allow-Origin") == allowed


def _recipe(folder: Path, name: str, delay: float) -> str:
    """An echo recipe beside its 24 prompts, by their names in the user's folder."""
    (folder / "mine.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Name {at} rivers of the world"}) + "\n" for at in range(24))
    )
    (folder / f"{name}.toml").write_text(
        f'name = "{name}"\n[prompts]\npath = "mine.jsonl"\n[sample]\nn = 4\nmax_tokens = 8\nshard_size = 4\n'
        f'[sample.engine]\ntype = "echo"\ndelay = {delay}\n[rank.judge]\ntype = "rule"\nrule = "concise"\n'
    )
    return f"{name}.toml"


@pytest.mark.slow
def test_the_deployment_is_there_with_schedule_time_zone_and_limit(deployed: Deployed) -> None:
    found = deployed.ask(f"/deployments/name/{NAME}")
    [schedule] = found["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "Europe/Berlin")
    assert schedule["active"]
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert found["work_pool_name"] == "dpo-data"

    said = (deployed.folder / "said.txt").read_text()
    assert deployed.url.removesuffix("/api") in said and f"prefect deployment run {NAME}" in said


@pytest.mark.slow
def test_people_s_answers_are_looked_for_every_quarter_of_an_hour_and_one_event_starts_the_rest(deployed: Deployed) -> None:
    collect, ranked = (deployed.ask(f"/deployments/name/{name}") for name in ("curate/collect", "sample-and-train/ranked"))
    assert [one["schedule"]["cron"] for one in collect["schedules"]] == ["*/15 * * * *"]
    assert collect["global_concurrency_limit"]["limit"] == 1
    assert collect["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert not ranked["schedules"] and not deployed.ask("/deployments/name/curate/push")["schedules"]

    [automation] = deployed.ask(f"/automations/related-to/prefect.deployment.{ranked['id']}")
    assert automation["enabled"] and automation["trigger"]["expect"] == [curate.EVENT]
    [action] = automation["actions"]
    assert (action["type"], action["deployment_id"]) == ("run-deployment", ranked["id"])


@pytest.mark.slow
def test_the_form_is_the_recipe_and_a_bad_value_is_refused_at_once(deployed: Deployed) -> None:
    found = deployed.ask(f"/deployments/name/{NAME}")
    tables = found["parameter_openapi_schema"]["definitions"]
    known = {*pipeline.STAGES, "name", "seed", "prompts", "audit", "gates", "rounds", "lineage", "prices"}
    assert known == set(tables["Recipe"]["properties"])
    assert tables["Sample"]["properties"]["n"]["minimum"] == 2

    good = {
        "name": "form",
        "prompts": {"path": "mine.jsonl"},
        "sample": {"n": 4, "engine": {"type": "echo"}},
        "rank": {"judge": {"type": "rule", "rule": "concise"}},
    }
    create = f"/deployments/{found['id']}/create_flow_run"
    far = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2999-01-01T00:00:00Z"}}
    assert deployed.post(create, {"parameters": {"recipe": good}, "state": far}).is_success
    for bad, why in (
        ({**good, "sample": {**good["sample"], "n": 1}}, "'recipe.sample.n'. Failure reason: 1 is less than the minimum of 2"),
        ({**good, "sampel": {}}, "('sampel' was unexpected)"),
    ):
        answer = deployed.post(create, {"parameters": {"recipe": bad}})
        assert answer.status_code == 409 and why in answer.text


@pytest.mark.slow
def test_a_run_by_its_name_completes_in_a_directory_named_by_date(deployed: Deployed) -> None:
    recipe = _recipe(deployed.folder, "quick", 0)
    assert deployed.prefect("deployment", "run", "sample-and-train", "--param", f"recipe={recipe}").returncode != 0

    done = deployed.prefect("deployment", "run", NAME, "--param", f"recipe={recipe}", "--watch")
    assert done.returncode == 0, done.stdout + done.stderr

    [folder] = deployed.folder.glob("runs/quick-*")
    time.strptime(folder.name, "quick-%Y-%m-%dT%H%M")
    assert RunDir(folder).stage("pair").manifest
    assert (folder / "report.html").exists()
    logs = deployed.ask("/logs/filter", limit=200)
    assert [log["message"] for log in logs if log["name"] == "dpo_data.pipeline"][-1].startswith("pair: complete")


@pytest.mark.slow
def test_a_worker_asks_its_own_server_each_second_and_another_one_as_prefect_does(deployed: Deployed) -> None:
    assert deployed.worker()["PREFECT_WORKER_QUERY_SECONDS"] == "1"
    with deploying(deployed.folder, urlsplit(deployed.url).port or 0) as second:
        assert "PREFECT_WORKER_QUERY_SECONDS" not in second.worker()


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_run_leaves_no_process_and_no_run_that_blocks_the_next(deployed: Deployed) -> None:
    recipe = _recipe(deployed.folder, "slow", 0.5)
    assert deployed.prefect("deployment", "run", NAME, "--param", f"recipe={recipe}").returncode == 0
    wait(lambda: list(deployed.folder.glob("runs/slow-*/1-sample/00000.parquet")), 180)
    children = psutil.Process(deployed.process.pid).children(recursive=True)
    assert len(children) >= 3, "server, worker and flow run"

    deployed.process.send_signal(signal.SIGINT)

    assert deployed.process.wait(timeout=180) == 130
    assert not psutil.wait_procs(children, timeout=10)[1]
    with sqlite3.connect(deployed.folder / "prefect" / "prefect.db") as database:
        states = dict(
            database.execute("select json_extract(parameters, '$.recipe'), state_type from flow_run where start_time")
        )
        assert states["slow.toml"] == "CRASHED"
        assert set(database.execute("select active_slots from concurrency_limit_v2")) == {(0,)}
