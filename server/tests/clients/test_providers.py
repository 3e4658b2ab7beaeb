"""Execution providers are strict: what was asked for runs, or the load fails, or everybody can see that it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest

import harness
import onnx_models
from harness import Repository, Server, restarts
from kubelet import Kubelet
from rehearsal import Rehearsal
from tensors import json_input

X = np.array([1.0], np.float32)
START = Callable[..., Server]
WATCH = Callable[[Server], Kubelet]
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


def test_a_gpu_that_only_another_process_heals_gets_one(
    repository: Repository, rehearsal: Rehearsal, rehearse: Callable[..., Server], watch: WATCH
) -> None:
    """T23: what ONNX Runtime says of a lost CUDA context, on command: there is no GPU here."""
    repository.add("same", onnx_models.identity("FP32", ["rows"]), settings="lanes = 2\n")
    x = json_input("x", "FP32", np.ones(2, np.float32))
    server = rehearse(repository.path).wait_settled()
    watch(server)
    before = server.worker_pid()
    sticky = rehearsal.fault("sticky", "same")
    # The worker is killed a tick later: its answer may be lost with it, as what is in flight on a dead worker is.
    with contextlib.suppress(OSError, HTTPException):
        refused = server.infer("same", x)
        assert (refused.status, refused.json["code"]) == (503, "model_not_ready"), refused
    server.wait_for(lambda: restarts(server) == {"gpu": 1}, "the worker is replaced")
    server.wait_for(lambda: server.probe("/ready").status == 200, "the next one serves")
    assert server.worker_pid() != before
    assert server.infer("same", x).outputs()["y"].tolist() == [1.0, 1.0]
    assert sticky.happened == 1, "not tried again in that process"
    end = server.status()["supervisor"]["last_end"]
    assert end["reason"] == "gpu" and "the execution provider failed for good" in end["how"], end
    # Nobody was sent to it any more before it was killed.
    log = server.stderr
    assert log.index("its execution provider is lost to this process") < log.index("killing the worker"), log
