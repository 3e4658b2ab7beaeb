"""How the server begins and ends: draining, signals, sockets, logs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness
import onnx_models
from harness import Repository, Server
from right_answers import Question
from tensors import json_input
from traffic import REFUSED, Traffic
from wire import Wire

START = Callable[..., Server]
X = np.array([1.0], np.float32)


def count_to(trips: int) -> dict[str, Any]:
    """The input of `loop`."""
    return json_input("trips", "INT64", np.array([trips]))


def plus_one(server: Server) -> list[float]:
    """A prediction."""
    return server.infer("plus", json_input("x", "FP32", X)).outputs()["y"].tolist()


@pytest.fixture
def models(repository: Repository) -> Path:
    """Two models."""
    repository.add("plus", onnx_models.plus(1))
    repository.add("loop", onnx_models.loop())
    return repository.path


def draining(drain_delay_ms: int, drain_timeout_ms: int = 30_000) -> dict[str, dict[str, int]]:
    """Settings of the end, with deadlines that do not end it."""
    return {
        "lifecycle": {"drain_delay_ms": drain_delay_ms, "drain_timeout_ms": drain_timeout_ms},
        "defaults": {"lanes": 1, "threads": 1, "deadline_ms": 30_000},
    }


# ===== the end =====


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_it_is_not_ready_at_once_yet_serves_while_others_learn_of_it(start: START, models: Path, name: str) -> None:
    server = start(models, draining(drain_delay_ms=1_500)).wait_started()
    server.process.send_signal(getattr(signal, name))
    server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503", 1.0)
    assert "draining" in server.probe("/ready").json["reasons"][0]
    assert server.status()["server"] == "draining"
    assert server.get("/ready").status == 503
    assert server.get("/v2/health/ready").status == 503
    assert server.get("/v2/models/plus/ready").status == 503
    assert server.probe("/live").status == 200, "no reason to kill it"
    assert server.probe("/startup").status == 200
    assert plus_one(server) == [2.0], "on a new connection, too"
    assert server.wait_ended() == 0
    assert "drained" in server.stderr


def test_what_runs_is_finished_before_the_end(start: START, models: Path) -> None:
    server = start(models, draining(drain_delay_ms=0)).wait_started()
    with ThreadPoolExecutor(2) as pool:
        # The second waits for the first: what waits is finished, too.
        running = [pool.submit(server.infer, "loop", count_to(trips)) for trips in (400_000, 400_001)]
        server.wait_for(lambda: server.in_flight() == 2, "both are in flight")
        server.terminate()
        assert sorted(answer.result().outputs()["count_out"].tolist() for answer in running) == [[400_000], [400_001]]
    assert server.wait_ended() == 0


def test_after_the_delay_no_new_connection_is_taken(start: START, models: Path) -> None:
    server = start(models, draining(drain_delay_ms=0)).wait_started()
    address = server.http
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.infer, "loop", count_to(600_000))
        server.wait_for(lambda: server.in_flight() == 1, "a run holds the end up")
        server.terminate()

        def refused() -> bool:
            try:
                socket.create_connection(_pair(address), 1).close()
            except (ConnectionRefusedError, ConnectionResetError):
                return True
            return False

        server.wait_for(refused, "a new connection is refused while the run goes on")
        assert not running.done()
        assert running.result().status == 200
    assert server.wait_ended() == 0


def _pair(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


def test_idle_connections_do_not_hold_the_end_up(start: START, models: Path) -> None:
    server = start(models, draining(drain_delay_ms=0)).wait_started()
    with Wire(server.http) as used, Wire(server.http):
        used.head("GET", "/v2", {})
        answer = used.answer()
        assert answer and answer.status == 200
        server.terminate()
        assert server.wait_ended(10) == 0


@pytest.mark.parametrize("drain_delay_ms", [0, 1_000])
def test_clients_that_keep_their_connections_lose_nothing(start: START, models: Path, drain_delay_ms: int) -> None:
    """Between two requests a client of HTTP/1 cannot be told: it is told with its last answer, or answered once more."""
    server = start(models, draining(drain_delay_ms)).wait_started()
    body = json.dumps({"inputs": [json_input("x", "FP32", X)]}).encode()
    asked = [Question("plus", body, {}, {"y": X + 1})]
    with Traffic(server.http, asked, clients=8, pause_s=0.005) as traffic:
        server.terminate()
        assert server.wait_ended() == 0
    assert set(traffic.outcomes()) <= {200, 503, REFUSED}, traffic.outcomes()


def test_answers_say_that_they_are_the_last_while_others_learn_of_the_end(start: START, models: Path) -> None:
    server = start(models, draining(drain_delay_ms=2_000)).wait_started()
    with Wire(server.http) as wire:

        def last() -> bool:
            wire.head("GET", "/v2", {})
            answer = wire.answer()
            assert answer and answer.headers["Connection"] in (None, "close")
            return answer.headers["Connection"] == "close"

        assert not last()
        server.terminate()
        server.wait_for(last, "the worker has heard of it", 1.5)
        assert wire.socket.recv(1) == b"", "and it is"
    assert plus_one(server) == [2.0], "a new connection is served"


def test_a_run_that_does_not_end_is_cut_when_the_drain_is_over(start: START, models: Path) -> None:
    server = start(models, draining(drain_delay_ms=0, drain_timeout_ms=300)).wait_started()
    with Wire(server.http) as wire:
        body = json.dumps({"inputs": [count_to(1 << 62)]}).encode()
        wire.head("POST", "/v2/models/loop/infer", {"Content-Length": len(body)})
        wire.send(body)
        server.wait_for(lambda: server.in_flight() == 1, "an endless run is in flight")
        server.terminate()
        assert server.wait_ended(10) == 143, "what was cut is no orderly end"
    assert "cut" in server.stderr


def test_a_second_signal_ends_it_at_once(start: START, models: Path) -> None:
    server = start(models, draining(drain_delay_ms=60_000)).wait_started()
    server.terminate()
    server.wait_for(lambda: server.probe("/ready").status == 503, "/ready is 503")
    server.terminate()
    assert server.wait_ended(5) == 143


def test_a_signal_while_models_load_ends_it(start: START, repository: Repository) -> None:
    trips = np.array([100_000_000])
    golden = [harness.golden_case({"trips": trips}, {"count_out": trips})]
    repository.add("slow", onnx_models.loop(), golden=golden)
    server = start(repository.path)
    server.wait_for(lambda: server.status()["models"], "the model is on its way")
    server.terminate()
    assert server.wait_ended(10) == 0


def test_an_end_while_lanes_are_still_built_is_an_orderly_one(start: START) -> None:
    """The first lane of a model makes it ready; the others are built behind its back, and may be when the end comes."""
    for _ in range(12):
        server = start(harness.SHIPPED_MODELS, {"defaults": {"lanes": 32, "threads": 1}}).wait_started()
        server.terminate()
        assert server.wait_ended() == 0


# ===== the start =====


def test_the_start_up_lines_tell_what_runs_and_how_to_try_it(start: START) -> None:
    server = start(harness.SHIPPED_MODELS).wait_started()
    lines = server.wait_for(
        lambda: any(line.startswith("curl") for line in server.lines) and server.lines, "the line with curl"
    )
    assert any(re.fullmatch(rf"http\s+http://{server.http}", line) for line in lines)
    assert any(re.fullmatch(rf"management\s+http://{server.management}", line) for line in lines)
    for model in ("iris", "digits", "breast_cancer"):
        digest = server.version(model)["digest"][:12]
        (line,) = [line for line in lines if line.startswith(model)]
        assert {"1", digest, "cpu", "ready"} <= set(line.split()), line


def test_the_line_with_curl_works_when_it_is_pasted(shipped: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (command,) = shipped.wait_for(
        lambda: [line for line in shipped.lines if line.startswith("curl")], "the line with curl"
    )
    curl = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert curl.returncode == 0, curl
    assert json.loads(curl.stdout)["outputs"], curl.stdout


def test_probes_are_answered_before_models_are_loaded(start: START, repository: Repository) -> None:
    trips = np.array([600_000])
    repository.add("slow", onnx_models.loop(), golden=[harness.golden_case({"trips": trips}, {"count_out": trips})])
    server = start(repository.path)
    assert server.probe("/live").status == 200
    assert server.get("/v2/health/live").status == 200
    assert server.probe("/ready").status == 503


# ===== a unix socket =====


def test_predictions_come_over_a_unix_socket(start: START, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "balm.sock"
    server = start(models, http_addr=f"unix:{path}").wait_started()
    assert server.http == f"unix:{path}"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert plus_one(server) == [2.0]
    answer = server.infer_binary("plus", ("x", "FP32", X))
    assert answer.outputs()["y"].tolist() == [2.0]
    assert server.get("/ready").status == 200
    server.terminate()
    assert server.wait_ended() == 0
    assert not path.exists(), "the socket goes with its server"


def test_a_socket_that_a_dead_server_left_is_replaced(start: START, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "balm.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    server = start(models, http_addr=f"unix:{path}").wait_started()
    assert plus_one(server) == [2.0]


def test_a_socket_that_is_in_use_is_left_alone(start: START, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "balm.sock"
    first = start(models, http_addr=f"unix:{path}").wait_started()
    second = start(models, http_addr=f"unix:{path}")
    assert second.wait_ended() == 74
    assert str(path) in second.stderr
    assert plus_one(first) == [2.0]


def test_a_file_that_is_no_socket_is_left_alone(start: START, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    server = start(models, http_addr=f"unix:{path}")
    assert server.wait_ended() == 74
    assert str(path) in server.stderr
    assert path.read_text() == "mine"


# ===== request ids and logs =====


def test_request_ids_are_given_back_and_made_where_there_is_none(shipped: Server) -> None:
    for path in ("/v2", "/v2/health/live", "/nowhere", "/v2/models/iris"):
        assert shipped.ask("GET", path, headers={"x-request-id": "trace-1"}).headers["x-request-id"] == "trace-1"
    first, second = (shipped.get("/v2").headers["x-request-id"] for _ in range(2))
    assert first and second and first != second


@pytest.mark.parametrize("bad", ["", "x" * 200, "two words", "ä"])
def test_a_request_id_unfit_for_a_log_line_is_replaced(shipped: Server, bad: str) -> None:
    with Wire(shipped.http) as wire:
        wire.send(b"GET /v2 HTTP/1.1\r\nHost: test\r\nx-request-id: " + bad.encode() + b"\r\n\r\n")
        answer = wire.answer()
    assert answer and answer.status == 200
    assert answer.headers["x-request-id"] and answer.headers["x-request-id"] != bad


def test_a_failed_request_can_be_found_in_the_log_by_its_id(start: START, models: Path) -> None:
    config = {"http": {"access_log": True}, "log": {"format": "json"}}
    server = start(models, config).wait_started()
    server.infer("plus", json_input("y", "FP32", X), headers={"x-request-id": "find-me"})
    server.wait_for(lambda: "find-me" in server.stderr, "the access log has the line")
    lines = [json.loads(line) for line in server.stderr.splitlines()]
    (entry,) = [line for line in lines if "find-me" in json.dumps(line)]
    fields = entry.get("fields", entry)
    assert fields["status"] == 400 and fields["path"] == "/v2/models/plus/infer" and fields["method"] == "POST"


def test_the_log_has_one_line_per_start_and_state_and_none_per_request(start: START, models: Path) -> None:
    server = start(models, {"log": {"format": "json"}}).wait_started()
    # The last that is said of a start: a model is ready before all its lanes are.
    server.wait_for(lambda: server.stderr.count("requests that share runs") == 2, "both models have all lanes")
    before = len(server.stderr.splitlines())
    for _ in range(10):
        plus_one(server)
        server.infer("plus", json_input("y", "FP32", X))
    assert len(server.stderr.splitlines()) == before
    starts = [line for line in server.stderr.splitlines() if "starting" in line]
    assert len(starts) == 1
    for model in ("plus", "loop"):
        (line,) = [line for line in server.stderr.splitlines() if f'"{model}"' in line and "version ready" in line]
        assert server.version(model)["digest"] in line


# ===== keep-alive and the other version of HTTP =====


def test_a_connection_carries_many_requests_after_a_mistake(shipped: Server) -> None:
    flower = {"inputs": [json_input("features", "FP32", np.ones((1, 4), np.float32))]}
    bodies = [json.dumps(flower), "{", json.dumps(flower), json.dumps({"inputs": []}), json.dumps(flower)]
    statuses = []
    with Wire(shipped.http) as wire:
        for body in bodies:
            wire.head("POST", "/v2/models/iris/infer", {"Content-Length": len(body)})
            wire.send(body.encode())
            answer = wire.answer()
            assert answer
            statuses.append(answer.status)
    assert statuses == [200, 400, 200, 400, 200]


def test_expect_continue_is_answered_when_there_is_room(shipped: Server) -> None:
    body = json.dumps({"inputs": [json_input("features", "FP32", np.ones((1, 4), np.float32))]}).encode()
    with Wire(shipped.http) as wire:
        wire.head("POST", "/v2/models/iris/infer", {"Content-Length": len(body), "Expect": "100-continue"})
        assert wire.first_line() == "HTTP/1.1 100 Continue"
        wire.send(body)
        answer = wire.answer()
    assert answer and answer.status == 200


def test_a_prediction_states_its_length(shipped: Server) -> None:
    """Triton's client in C++ reserves memory from it."""
    answer = shipped.infer_binary("iris", ("features", "FP32", np.ones((100, 4), np.float32)))
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert answer.headers.get_content_type() == "application/octet-stream"
    assert "Transfer-Encoding" not in answer.headers


def test_an_answer_is_compressed_only_when_asked_for_and_only_as_clients_can_read(shipped: Server) -> None:
    features = json_input("features", "FP32", np.ones((500, 4), np.float32))
    for accept, encoding in {
        None: None,
        "br, zstd": None,
        "gzip": "gzip",
        "deflate": "deflate",
        "br, gzip": "gzip",
    }.items():
        headers = {} if accept is None else {"Accept-Encoding": accept}
        answer = shipped.infer("iris", features, headers={"Accept-Encoding": "identity"} | headers)
        assert answer.status == 200
        assert answer.headers["Content-Encoding"] == encoding, accept


def test_a_large_answer_stays_plain(toys: Server) -> None:
    """Packing it would keep everybody else on its thread waiting."""
    for rows, encoding in {200: "gzip", 400: None}.items():
        zeros = np.zeros((rows, 250), np.float32)
        answer = toys.infer_binary("identity_fp32", ("x", "FP32", zeros), headers={"Accept-Encoding": "gzip"})
        assert answer.status == 200
        assert answer.headers["Content-Encoding"] == encoding, f"{zeros.nbytes} bytes"
