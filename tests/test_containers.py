"""Dockerfile, compose files and Kubernetes manifests: what their linters say, and that they keep to the house's rules."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
BIN = Path(sys.executable).parent
COMPOSE = sorted(DEPLOY.glob("compose*.yaml"))
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|API_KEY|AUTH_STRING|CONNECTION_URL")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


RESOURCES = [pytest.param(one, id=f"{path.name}-{one['kind']}") for path in MANIFESTS for one in documents(path)]
PODS = [one for one in RESOURCES if one.values[0]["kind"] in ("Deployment", "StatefulSet")]


def test_there_is_something_to_read() -> None:
    assert {path.name for path in MANIFESTS} >= {"server.yaml", "worker.yaml", "argilla.yaml"}
    assert len(PODS) >= 4 and len(COMPOSE) == 2


def linter(*command: str) -> str:
    """What a linter of the environment says; skipped where it is not installed."""
    program = shutil.which(command[0], path=str(BIN)) or pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path: Path) -> None:
    assert not linter("hadolint", str(DEPLOY / "Dockerfile"))
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install torch\n")
    assert {"DL3007", "DL3013"} <= set(re.findall(r"DL\d+", linter("hadolint", str(bad))))


def test_compose_files_are_of_the_compose_specification(tmp_path: Path) -> None:
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    assert not linter(*check, *map(str, COMPOSE))
    bad = tmp_path / "compose.yaml"
    bad.write_text("services: {worker: {imagge: x}}")
    assert "imagge" in linter(*check, str(bad))


@pytest.mark.parametrize("resource", RESOURCES)
def test_manifests_are_of_kubernetes_schemas(resource: dict[str, Any]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(resource, kubernetes.latest_version(), strict=True)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate({**resource, "speck": {}}, kubernetes.latest_version(), strict=True)


def test_kustomization_names_every_manifest() -> None:
    [told] = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert sorted(told["resources"]) == [path.name for path in MANIFESTS]
    if kubectl := shutil.which("kubectl"):
        done = subprocess.run([kubectl, "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert all(
            one["kind"] == "Namespace" or one["metadata"]["namespace"] == "dpo-data" for one in yaml.safe_load_all(done.stdout)
        )


def test_the_images_are_made_of_what_is_there_at_pinned_versions_and_run_as_nobody_in_particular() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    root, ignored = DEPLOY.parent, (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.+) \S+$", text, re.M):
        for source in line.split():
            assert (root / source).exists() and f"!{source}" in ignored
    targets = {name: body for name, body in re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S)}
    assert set(targets) == {"base", "cpu", "gpu"}
    for name in ("cpu", "gpu"):
        installs = re.findall(r"pip install (.+?)(?= &&|\n)", targets[name])
        assert installs and all(f"--constraint constraints/{name}.txt" in one for one in installs)
        assert re.findall(r"^USER (\S+)$", targets[name], re.M) == ["10001"]
    [torch] = re.findall(r"torch==\S+", targets["cpu"])
    assert torch in (root / "constraints" / "cpu.txt").read_text().split()


def test_compose_publishes_on_this_machine_alone_and_names_no_secret() -> None:
    services = {name: one for path in COMPOSE for name, one in yaml.safe_load(path.read_text())["services"].items()}
    assert {"postgres", "server", "worker", "argilla"} <= set(services)
    for one in services.values():
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", []))
        assert one.get("network_mode") != "host" and not one.get("privileged")
        for key, value in one.get("environment", {}).items():
            assert not SECRET.search(key) or value is None or "${" in str(value), key
        image = one.get("image", "built:here")
        assert ":" in image and not image.endswith(":latest")


def test_compose_passes_the_passwords_on_and_none_that_is_empty() -> None:
    """A key without a value is passed on where it is set; `${NAME:-}` would be an empty password, or sign with an empty key."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for service, name in (
        ("server", "PREFECT_SERVER_API_AUTH_STRING"),
        ("worker", "PREFECT_API_AUTH_STRING"),
        ("argilla", "ARGILLA_AUTH_SECRET_KEY"),
    ):
        assert services[service]["environment"][name] is None
    worker = services["worker"]
    assert (worker["hostname"], worker["environment"]["DPO_DATA_GPU_LIMIT"]) == (
        "${WORKER_NAME:-worker}",
        "gpu-${WORKER_NAME:-worker}",
    )


def test_only_the_server_s_own_pages_are_given_its_answers() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["server"]["environment"]
    [server] = [one for one in documents(DEPLOY / "kubernetes" / "server.yaml") if one["kind"] == "Deployment"]
    kubernetes = {one["name"]: one.get("value") for one in pod(server)["containers"][0]["env"]}
    for env in (compose, kubernetes):
        assert env["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200,http://localhost:4200"


def pod(resource: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = resource["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("resource", PODS)
def test_every_container_is_bounded_probed_and_without_rights(resource: dict[str, Any]) -> None:
    context = pod(resource)["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] > 0 and context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(resource)["automountServiceAccountToken"] is False
    for one in pod(resource)["containers"]:
        assert one["livenessProbe"]
        assert set(one["resources"]["requests"]) >= {"cpu", "memory"} and "memory" in one["resources"]["limits"]
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert one["image"] == "dpo-data" or re.search(r":v?\d", one["image"]), "pinned"
        for variable in one.get("env", []):
            if SECRET.search(variable["name"]):
                assert "secretKeyRef" in variable.get("valueFrom", {}) or "$(" in variable["value"], variable["name"]


@pytest.mark.parametrize("resource", RESOURCES)
def test_nothing_is_published_outside_the_cluster(resource: dict[str, Any]) -> None:
    assert resource["kind"] not in ("Ingress", "Secret")
    if resource["kind"] == "Service":
        assert resource["spec"].get("type", "ClusterIP") == "ClusterIP"
    if resource["kind"] in ("Deployment", "StatefulSet"):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod(resource))
        assert not any("hostPort" in port for one in pod(resource)["containers"] for port in one.get("ports", []))


def test_the_worker_has_a_gpu_a_volume_and_a_limit_of_its_own() -> None:
    [worker] = documents(DEPLOY / "kubernetes" / "worker.yaml")
    [container] = pod(worker)["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {one["mountPath"] for one in container["volumeMounts"]} >= {"/work", "/dev/shm"}
    assert {"name": "DPO_DATA_GPU_LIMIT", "value": "gpu-$(NAME)"} in container["env"]
    assert container["args"] == ["dpo-data", "deploy", "--with-healthcheck"]


def settings() -> Iterator[tuple[str, str]]:
    """Each of Prefect's settings that these files name, with its place."""
    for path in [DEPLOY / "Dockerfile", *COMPOSE, *MANIFESTS]:
        for name in re.findall(r"\b(PREFECT_[A-Z_]+)\b", path.read_text()):
            yield name, path.name


def test_every_setting_of_prefect_s_is_one_that_it_knows() -> None:
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = set(_get_settings_fields(Settings))
    assert not [(name, where) for name, where in settings() if name not in known]
