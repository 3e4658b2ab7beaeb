"""Loads that take long, and loads that never end: nobody is restarted for them, and nobody waits behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_models
from harness import Repository, Server, restarts
from kubelet import Kubelet
from rehearsal import Rehearsal
from tensors import json_input

WATCH = Callable[[Server], Kubelet]

# As long as a load that does not hang may need on a busy machine.
LIMIT_MS = 4_000
# Then it is told to end, twice; each time it has two seconds for that.
PATIENCE_S = 120


def one() -> dict[str, Any]:
    """The input of the models here."""
    return json_input("x", "FP32", np.ones(2, np.float32))


@pytest.fixture
def models(repository: Repository) -> Path:
    """A model that is to hang, before one that is not."""
    for name in ["hangs", "other"]:
        repository.add(name, onnx_models.identity("FP32", ["rows"]), settings="lanes = 1\n")
    return repository.path


@pytest.fixture
def config() -> dict[str, dict[str, Any]]:
    """One loader, so that whoever waits behind a load that hangs waits."""
    return {"repository": {"load_timeout_ms": LIMIT_MS}, "defaults": {"lanes": 1}}


def test_a_load_that_hangs_is_given_up_and_the_others_serve(
    models: Path, config: dict[str, Any], rehearsal: Rehearsal, rehearse: Callable[..., Server], watch: WATCH
) -> None:
    """T30."""
    hang = rehearsal.fault("hang_load", "hangs", times=2)
    server = rehearse(models, config)
    kubelet = watch(server)
    server.wait_for(lambda: server.infer("other", one()).status == 200, "the other serves", PATIENCE_S)
    assert hang.happened >= 1
    assert server.probe("/startup").status == 503, "it is not over"
    server.wait_for(lambda: server.version("hangs")["state"] == "failed", "it is given up", PATIENCE_S)
    server.wait_settled()
    assert hang.happened == 2, "it was tried once more"
    assert server.probe("/startup").status == 200, "nothing is on its way any more"
    ready = server.probe("/ready")
    assert ready.status == 503
    (reason,) = ready.json["reasons"]
    assert f"its load takes longer than {LIMIT_MS} ms and does not end when it is told to" in reason
    refused = server.infer("hangs", one())
    assert (refused.status, refused.json["code"]) == (503, "model_not_ready"), refused
    assert server.infer("other", one()).status == 200
    metrics = server.metrics()
    assert metrics.one("balm_loads_abandoned") == 2
    assert metrics.one("balm_heal_actions_total", rung="cancel", reason="load_overdue") == 2
    # Loads that hang are bounded.
    again = server.load("hangs")
    assert again.status == 400 and "only another process helps" in again.text, again
    assert restarts(server) == {}
    assert kubelet.verdict().restarts == 0, "nobody restarts it for that"
    # Threads that hang hold up no end.
    assert server.stop() == 0


def test_a_load_that_hangs_once_serves_after_all(
    models: Path, config: dict[str, Any], rehearsal: Rehearsal, rehearse: Callable[..., Server]
) -> None:
    rehearsal.fault("hang_load", "hangs", times=1)
    server = rehearse(models, config)
    server.wait_for(lambda: server.probe("/ready").status == 200, "it serves", PATIENCE_S)
    assert server.infer("hangs", one()).status == 200
    (incident,) = server.status()["incidents"]
    assert incident["subject"] == 'load of model "hangs" version 1'
    assert "a load did not end in its time" in incident["story"] and "healed_after_ms" in incident


def test_a_slow_load_is_waited_for(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server], watch: WATCH
) -> None:
    """T30: what is slow is not hung, and no probe says so."""
    rehearsal.fault("slow_load", "hangs", ms=6_000)
    server = rehearse(models)
    watch(server)
    server.wait_for(lambda: server.infer("other", one()).status == 200, "the other serves")
    assert server.probe("/startup").status == 503
    server.wait_for(lambda: server.probe("/ready").status == 200, "it is loaded", PATIENCE_S)
    assert restarts(server) == {}
    assert server.status().get("incidents", []) == []


def test_onnx_runtime_ends_a_load_when_it_is_told_to(repository: Repository, start: Callable[..., Server]) -> None:
    """No rehearsal: the library itself is at work for a second or so, and looks up between two of its passes."""
    repository.add("folded", onnx_models.folded(10))
    server = start(repository.path, {"repository": {"load_timeout_ms": 1}, "defaults": {"lanes": 1}})
    server.wait_for(lambda: server.infer("folded", one()).status == 503, "it is not there")
    server.wait_settled()
    # A library that did not heed it would have come to its end within the time that it has for that.
    version = server.version("folded")
    assert version["state"] == "failed", version
    assert version["reason"].startswith("its load takes longer than 1 ms"), version
    # Where the machine is so busy that a pass took longer than that, it ends all the same.
    server.wait_for(lambda: server.metrics().one("balm_loads_abandoned") == 0, "it ended", PATIENCE_S)
