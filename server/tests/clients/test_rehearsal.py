"""A server fails on command only where it was started for it, from a private folder."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import harness
import onnx_models
from harness import Repository, Server, restarts
from rehearsal import Rehearsal

USAGE = 64


def one(values: list[float]) -> dict[str, Any]:
    """The input of the model `same`."""
    return {"name": "x", "datatype": "FP32", "shape": [1, len(values)], "data": values}


@pytest.fixture
def models(repository: Repository) -> Path:
    """A model that answers what it was asked."""
    repository.add("same", onnx_models.identity("FP32", ["rows", "columns"]), settings="lanes = 1\n")
    return repository.path


def answers(server: Server) -> bool:
    """Whether it answers rightly, now."""
    answer = server.infer("same", one([0.5, 2.0]))
    return answer.status == 200 and answer.json["outputs"][0]["data"] == [0.5, 2.0]


def test_faults_happen_as_often_as_they_are_told_to(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server]
) -> None:
    # One is there before the server is, for the load alone; the others come while it serves.
    slow = rehearsal.fault("slow_load", "same", ms=200)
    server = rehearse(models).wait_settled()
    assert "WARN" in server.stderr and "fails on command" in server.stderr
    assert slow.happened == 1
    error = rehearsal.fault("error", "same", times=2)
    assert [server.infer("same", one([1.0])).status for _ in range(3)] == [500, 500, 200]
    assert error.happened == 2
    wrong = rehearsal.fault("wrong", "same")
    assert server.infer("same", one([1.0])).json["outputs"][0]["data"] == [2.0]
    assert wrong.happened == 1
    panic = rehearsal.fault("panic", "same")
    assert server.infer("same", one([1.0])).status == 500
    assert panic.happened == 1
    assert answers(server)
    assert restarts(server) == {}
    # What a file says that cannot be done is said, and harms nobody.
    refused = rehearsal.fault("explode")
    assert answers(server)
    with pytest.raises(AssertionError, match="unknown variant"):
        refused.wait()


def test_faults_outlive_the_workers_that_they_end(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server]
) -> None:
    server = rehearse(models).wait_settled()
    crash = rehearsal.fault("crash_on", "same", value=666)
    assert answers(server), "any other request is answered"
    assert crash.happened == 0
    with pytest.raises(OSError):
        server.infer("same", one([666.0, 1.0]))
    server.wait_for(lambda: answers(server), "another worker answers")
    assert crash.happened == 1
    crash.end()
    # Each further worker waits longer for its turn, so that one of each has to do.
    starts = rehearsal.fault("die_at_start")
    kill = rehearsal.fault("signal", "same", signal="SIGKILL")
    with pytest.raises(OSError):
        server.infer("same", one([1.0]))
    server.wait_for(lambda: answers(server), "another worker answers")
    assert (kill.happened, starts.happened) == (1, 1)
    assert restarts(server) == {"segv": 1, "killed": 1, "exit": 1}


def test_a_process_can_be_told_to_stop_itself(
    models: Path, rehearsal: Rehearsal, rehearse: Callable[..., Server]
) -> None:
    server = rehearse(models, flags=("--single-process",)).wait_settled()
    stop = rehearsal.fault("signal", "same", signal="SIGSTOP")
    state = Path(f"/proc/{server.process.pid}/stat")
    with pytest.raises(OSError):
        body = json.dumps({"inputs": [one([0.5, 2.0])]})
        server.ask("POST", "/v2/models/same/infer", body, timeout_s=1)
    assert state.read_text().rsplit(")", 1)[1].split()[0] == "T"
    assert stop.happened == 1
    os.kill(server.process.pid, signal.SIGCONT)
    server.wait_for(lambda: answers(server), "it answers again")


def test_a_folder_that_others_can_write_to_is_refused(models: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    file = tmp_path / "file"
    file.write_text("")
    for folder, said in [(shared, "mode 0755"), (file, "no folder"), (tmp_path / "absent", "No such file")]:
        result = harness.run("serve", "--models", models, "--rehearsal", folder)
        assert result.returncode == USAGE, result
        assert said in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


def test_a_plain_server_cannot_be_told_to_fail(models: Path, tmp_path: Path, start: Callable[..., Server]) -> None:
    faults = Rehearsal(tmp_path / "faults")
    error = faults.fault("error")
    help_text = harness.run("serve", "--help").stdout
    assert "rehearsal" not in help_text
    # Neither by a setting nor by a variable.
    config = tmp_path / "bad.toml"
    config.write_text(f'rehearsal = "{faults.folder}"\n')
    result = harness.run("serve", "--models", models, "--config", config)
    assert result.returncode == USAGE and "rehearsal" in result.stderr
    variables = {"BALM_REHEARSAL": str(faults.folder)}
    assert harness.run("serve", "--models", models, env=variables).returncode == USAGE
    server = start(models).wait_settled()
    assert answers(server)
    assert error.happened == 0
    assert "fails on command" not in server.stderr
    # Nor by anything that can be asked for.
    for path in ("/rehearsal", "/v2/rehearsal", "/faults"):
        assert server.post(path, {"kind": "error"}).status in (404, 405)
        assert server.probe(path).status == 404
