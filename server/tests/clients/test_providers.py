"""Execution providers are strict: what was asked for runs, or the load fails, or everybody can see that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import harness
import onnx_models
from harness import Repository, Server
from tensors import json_input

X = np.array([1.0], np.float32)
START = Callable[..., Server]
# The library that `make ort` brings computes on the CPU alone; no test needs a GPU for these.
ABSENT = "rocm"


def test_a_provider_that_cannot_be_had_fails_the_load_and_names_what_is_missing(
    start: START, repository: Repository
) -> None:
    repository.add("fast", onnx_models.plus(1), settings=f'providers = ["{ABSENT}", "cpu"]\n')
    repository.add("plus", onnx_models.plus(1))
    server = start(repository.path).wait_started()
    version = server.version("fast")
    assert version["state"] == "failed"
    assert ABSENT in version["reason"] and "fallback" in version["reason"]
    assert server.probe("/ready").status == 503
    assert server.infer("plus", json_input("x", "FP32", X)).status == 200


def test_falling_back_is_a_choice_and_shows_everywhere(start: START, repository: Repository) -> None:
    settings = f'providers = ["{ABSENT}"]\nfallback = "cpu"\n'
    repository.add("fast", onnx_models.plus(1), settings=settings)
    server = start(repository.path).wait_started()
    version = server.version("fast")
    assert version["state"] == "degraded"
    assert version["providers"] == [ABSENT] and version["provider"] == "cpu"
    assert ABSENT in version["reason"]
    ready = server.probe("/ready")
    assert ready.status == 200, "it serves"
    assert any("fast" in note and ABSENT in note for note in ready.json["notes"])
    assert server.index()["fast", "1"]["state"] == "READY"
    assert server.infer("fast", json_input("x", "FP32", X)).outputs()["y"].tolist() == [2.0]
    metrics = server.metrics()
    assert metrics.one("balm_model_provider_info", model="fast", provider="cpu", degraded="true") == 1
    assert metrics.one("balm_model_state", model="fast", state="degraded") == 1
    server.wait_for(lambda: any("degraded" in line and "cpu" in line for line in server.lines), "the start-up line")


def test_the_configuration_may_ask_for_all_models(start: START, repository: Repository) -> None:
    repository.add("plus", onnx_models.plus(1))
    repository.add("modest", onnx_models.plus(2), settings='providers = ["cpu"]\n')
    server = start(repository.path, {"defaults": {"providers": [ABSENT]}}).wait_settled()
    assert server.version("plus")["state"] == "failed"
    assert server.version("modest")["state"] == "ready", "its own word outweighs"
    server = start(repository.path, {"defaults": {"providers": [ABSENT], "fallback": "cpu"}}).wait_started()
    assert server.version("plus")["state"] == "degraded"
    assert server.version("modest")["state"] == "ready"


def test_check_shows_a_degraded_model_and_passes(repository: Repository) -> None:
    repository.add("fast", onnx_models.plus(1), settings=f'providers = ["{ABSENT}"]\nfallback = "cpu"\n')
    result = harness.run("check", repository.path)
    assert result.returncode == 0, result
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("fast")]
    assert "degraded" in line and ABSENT in line


def test_a_gpu_runs_what_is_asked_of_it(start: START, repository: Repository) -> None:
    library = harness.ROOT / ".ort-gpu" / "libonnxruntime.so"
    if not Path("/proc/driver/nvidia/version").exists() or not library.exists():
        pytest.skip("no NVIDIA GPU here, or `make ort-gpu WITH_CUDA=1` was not run: nothing is known of GPUs from this run")
    repository.add("fast", onnx_models.matmul_chain(), settings='providers = ["cuda"]\n')
    server = start(repository.path, {"onnxruntime": {"library": str(library)}}).wait_started()
    version = server.version("fast")
    assert version["state"] == "ready", version
    assert version["provider"] == "cuda"


def test_cuda_on_the_cpu_library_says_what_is_missing(start: START, repository: Repository) -> None:
    repository.add("fast", onnx_models.plus(1), settings='providers = ["cuda"]\n')
    version = start(repository.path, {"repository": {"readiness": "any"}}).wait_settled().version("fast")
    assert version["state"] == "failed"
    assert "cuda" in version["reason"] and "not enabled in this build" in version["reason"], version
