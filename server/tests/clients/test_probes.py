"""Probes in each state of the server and of its models. Overload is no state: it changes none of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import wire
import onnx_models
from harness import GLANCE_S, Repository, Server, golden_case
from tensors import json_input
from wire import Answer, Wire

START = Callable[..., Server]
X = np.array([1.0], np.float32)
# About a second a run: long enough to be looked at, and no time that a test waits for.
SLOW_TRIPS = 600_000


def add_slow(repository: Repository, name: str = "slow") -> None:
    """A model that takes long to prove itself: its golden request runs a long loop."""
    trips = np.array([SLOW_TRIPS])
    repository.add(name, onnx_models.loop(), golden=[golden_case({"trips": trips}, {"count_out": trips})])


def plus_one(server: Server, model: str = "plus") -> Answer:
    """A prediction."""
    return server.infer(model, json_input("x", "FP32", X))


def states(server: Server, *paths: str) -> list[int]:
    """Statuses of probes."""
    return [server.probe(path).status for path in paths]


# ===== where they are =====


def test_every_probe_is_there_under_its_aliases(shipped: Server) -> None:
    for path, body in {
        "/startup": {"started": True},
        "/live": {"live": True},
        "/ready": {"ready": True},
        "/healthz": {"live": True},
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
    }.items():
        answer = shipped.probe(path)
        assert (answer.status, answer.json) == (200, body), path
        assert answer.headers.get_content_type() == "application/json"
    for path, body in {
        "/live": {"live": True},
        "/ready": {"ready": True},
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v2/models/iris/ready": {"name": "iris", "ready": True},
        "/v2/models/iris/versions/1/ready": {"name": "iris", "ready": True},
    }.items():
        answer = shipped.get(path)
        assert (answer.status, answer.json) == (200, body), path


def test_the_management_port_knows_nothing_else(shipped: Server) -> None:
    assert shipped.probe("/nothing").status == 404
    assert shipped.probe("/v2/models/iris/infer").status == 404
    assert wire.ask(shipped.management, "POST", "/ready").status == 405
    answer = wire.ask(shipped.management, "HEAD", "/ready")
    assert (answer.status, answer.body) == (200, b"")


def test_predictions_are_not_served_on_the_management_port_nor_metrics_on_the_data_port(shipped: Server) -> None:
    assert wire.ask(shipped.management, "POST", "/v2/models/iris/infer", "{}").status in (404, 405)
    assert shipped.get("/metrics").status == 404
    assert shipped.get("/status").status == 404


def test_status_tells_states_times_and_what_really_runs(shipped: Server) -> None:
    report = shipped.status()
    assert report["server"] == "running"
    assert [model["name"] for model in report["models"]] == ["breast_cancer", "digits", "iris"]
    now_ms = time.time() * 1000
    for model in report["models"]:
        assert model["declared"] is True
        (version,) = model["versions"]
        assert (version["version"], version["state"]) == (1, "ready")
        assert version["provider"] == "cpu" and version["providers"] == ["cpu"]
        assert len(version["digest"]) == 64
        assert version["lanes"]["healthy"] == version["lanes"]["wanted"] >= 1
        assert version["threads"] >= 1
        assert 0 <= now_ms - version["since_ms"] < 3_600_000
    assert 0 <= now_ms - report["since_ms"] < 3_600_000
    assert any("1.31" in fact for fact in report["details"].values()), "the runtime's version"


# ===== nothing to serve =====


def test_an_empty_repository_is_live_and_never_ready(start: START, repository: Repository) -> None:
    server = start(repository.path).wait_settled()
    assert states(server, "/live", "/ready", "/startup", "/status") == [200, 503, 503, 200]
    assert "no model" in server.probe("/ready").json["reasons"][0]
    answer = server.get("/ready")
    assert answer.status == 503 and "no model" in answer.error
    assert answer.json["code"] == "server_not_ready" and answer.json["ready"] is False
    assert server.get("/live").status == 200
    assert server.infer("iris", json_input("x", "FP32", X)).status == 404


def test_a_repository_with_nothing_but_bad_models_is_live_and_never_ready(start: START, repository: Repository) -> None:
    repository.add("bad", b"not a model")
    server = start(repository.path).wait_settled()
    assert states(server, "/live", "/ready", "/startup") == [200, 503, 503]
    assert "'bad'" in server.probe("/ready").json["reasons"][0]
    answer = server.get("/v2/models/bad/ready")
    assert answer.status == 503 and answer.error
    assert answer.json["code"] == "model_not_ready" and answer.json["name"] == "bad"


# ===== starting =====


def test_while_models_load_the_server_is_live_and_not_ready(start: START, repository: Repository) -> None:
    add_slow(repository)
    repository.add("plus", onnx_models.plus(1))
    server = start(repository.path, {"defaults": {"lanes": 1}})
    ready = server.probe("/ready")
    assert ready.status == 503, "asked at once, while a model has seconds to go"
    assert any("'slow'" in reason or "starting" in reason for reason in ready.json["reasons"]), ready.json
    startup = server.probe("/startup")
    assert startup.status == 503 and startup.json["started"] is False and startup.json["reasons"]
    assert server.probe("/live").status == 200
    assert server.status()["server"] == "starting"
    server.wait_for(
        lambda: server.version("slow")["state"] in ("warming", "probing"),
        "the slow model is seen while it is on its way",
    )
    assert server.get("/v2/models/slow/ready").status == 503
    assert server.infer("slow", json_input("trips", "INT64", np.array([1]))).status == 503
    server.wait_started()
    assert states(server, "/live", "/ready", "/startup") == [200, 200, 200]
    assert server.status()["server"] == "running"
    assert plus_one(server).status == 200


def test_readiness_never_takes_a_step_back_while_starting(start: START, repository: Repository) -> None:
    add_slow(repository)
    for index in range(3):
        repository.add(f"plus{index}", onnx_models.plus(index))
    server = start(repository.path, {"defaults": {"lanes": 1}})
    seen: list[tuple[int, int, int]] = []

    def settled() -> bool:
        seen.append(tuple(states(server, "/startup", "/ready", "/live")))
        return seen[-1] == (200, 200, 200)

    server.wait_for(settled, "all probes are 200")
    assert seen == sorted(seen, reverse=True), "once 200, always 200"
    assert seen[0] != seen[-1], "the test must have looked early enough"
    assert all(live == 200 for _, _, live in seen)


# ===== which models count =====


@pytest.mark.parametrize(
    ("policy", "ready"), [("all", 503), ("any", 200), (["plus"], 200), (["bad"], 503), (["plus", "absent"], 503)]
)
def test_readiness_is_judged_by_the_models_that_the_policy_names(
    start: START, repository: Repository, policy: object, ready: int
) -> None:
    repository.add("plus", onnx_models.plus(1))
    repository.add("bad", b"not a model")
    server = start(repository.path, {"repository": {"readiness": policy}}).wait_settled()
    answer = server.probe("/ready")
    assert answer.status == ready, answer.json
    assert server.get("/ready").status == ready, "the alias says the same"
    assert plus_one(server).status == 200, "a good model serves in any case"
    if policy == ["plus", "absent"]:
        assert "'absent'" in answer.json["reasons"][0]


# ===== loading a further model, and letting go =====


def test_loading_a_further_model_changes_nothing(start: START, repository: Repository) -> None:
    repository.add("plus", onnx_models.plus(1))
    server = start(repository.path, {"defaults": {"lanes": 1}}).wait_started()
    add_slow(repository)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(server.load, "slow")
        during: set[str] = set()
        while not loading.done():
            assert states(server, "/ready", "/live", "/startup") == [200, 200, 200]
            assert plus_one(server).status == 200
            entry = server.index().get(("slow", "1"))
            during.add(entry["state"] if entry else "")
            time.sleep(GLANCE_S)
        assert loading.result().status == 200
    assert "LOADING" in during, "the test must have looked while it loaded"
    assert server.infer("slow", json_input("trips", "INT64", np.array([7]))).outputs()["count_out"] == [7]
    assert server.index()["slow", "1"]["state"] == "READY"


def test_a_further_model_that_fails_changes_nothing(start: START, repository: Repository) -> None:
    repository.add("plus", onnx_models.plus(1))
    server = start(repository.path).wait_started()
    repository.add("bad", b"not a model")
    answer = server.load("bad")
    assert answer.status == 400 and "ONNX" in answer.error
    assert states(server, "/ready", "/live", "/startup") == [200, 200, 200]
    answer = server.get("/v2/models/bad/ready")
    assert answer.status == 503 and answer.error
    assert answer.json["code"] == "model_not_ready" and answer.json["name"] == "bad"


def test_letting_a_model_go_is_a_choice_and_no_failure(start: START, repository: Repository) -> None:
    repository.add("plus", onnx_models.plus(1))
    repository.add("other", onnx_models.plus(2))
    server = start(repository.path).wait_started()
    assert server.unload("other").status == 200
    assert states(server, "/ready", "/live", "/startup") == [200, 200, 200]
    assert server.get("/v2/models/other/ready").status == 503
    assert plus_one(server, "other").status == 503
    assert plus_one(server).status == 200


def test_a_start_that_is_over_stays_over_though_nobody_asked(start: START, repository: Repository) -> None:
    repository.add("plus", onnx_models.plus(1))
    server = start(repository.path)
    server.wait_for(lambda: server.probe("/ready").status == 200, "/ready is 200")
    assert server.unload("plus").status == 200
    assert server.probe("/startup").status == 200, "asked for the first time"


def test_a_server_whose_last_model_was_let_go_is_not_ready(start: START, repository: Repository) -> None:
    repository.add("plus", onnx_models.plus(1))
    server = start(repository.path).wait_started()
    assert server.unload("plus").status == 200
    assert states(server, "/ready", "/live", "/startup") == [503, 200, 200]
    assert server.load("plus").status == 200
    assert plus_one(server).status == 200


# ===== load and hanging clients =====


def test_overload_changes_no_probe_and_delays_none(start: START, repository: Repository) -> None:
    repository.add("loop", onnx_models.loop())
    config = {
        "defaults": {"lanes": 1, "threads": 1, "deadline_ms": 20_000, "max_deadline_ms": 20_000},
        "admission": {"max_in_flight": 4, "max_in_flight_per_model": 4},
    }
    server = start(repository.path, config).wait_started()
    endless = json_input("trips", "INT64", np.array([1 << 62]))
    stop = threading.Event()
    shed = []

    def flood() -> None:
        while not stop.is_set():
            shed.append(server.infer("loop", endless).status)

    wires = [Wire(server.http) for _ in range(4)]
    body = json.dumps({"inputs": [endless]}).encode()
    for wire in wires:
        wire.head("POST", "/v2/models/loop/infer", {"Content-Length": len(body)})
        wire.send(body)
    server.wait_for(lambda: server.in_flight() == 4, "the server is full")
    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    for _ in range(50):
        begun = time.monotonic()
        assert states(server, "/live", "/ready", "/startup") == [200, 200, 200]
        slowest = max(slowest, time.monotonic() - begun)
    stop.set()
    for thread in threads:
        thread.join()
    assert shed and set(shed) == {503}, "the flood was shed"
    assert slowest < 1.0, "three probes, while everything else is busy"
    for wire in wires:
        wire.socket.close()
    server.wait_idle()


def test_clients_that_say_nothing_keep_no_probe_from_its_answer(shipped: Server) -> None:
    wires = [Wire(shipped.management) for _ in range(300)]
    try:
        assert states(shipped, "/live", "/ready", "/startup") == [200, 200, 200]
        assert shipped.probe("/metrics").status == 200
    finally:
        for wire in wires:
            wire.socket.close()


def test_every_state_of_a_version_is_passed_in_order_and_told(start: START, repository: Repository) -> None:
    x = np.array([1.0], np.float32)
    good = [golden_case({"x": x}, {"y": x + 1})]
    lie = [golden_case({"x": x}, {"y": x + 2})]
    repository.add("plus", onnx_models.plus(1), golden=good)
    repository.add("liar", onnx_models.plus(1), golden=lie)
    repository.add("broken", b"not a model")
    repository.add("fallen", onnx_models.plus(1), settings='providers = ["rocm"]\nfallback = "cpu"\n')
    config = {"repository": {"readiness": ["plus"]}, "log": {"format": "json"}}
    server = start(repository.path, config).wait_started().wait_settled()
    assert server.unload("plus").status == 200
    assert server.version("plus")["state"] == "unloaded"

    def steps(model: str) -> list[str]:
        lines = (json.loads(line) for line in server.stderr.splitlines() if line.startswith("{"))
        changes = [line for line in lines if line.get("message") == "state" and line["model"] == model]
        for before, after in zip(changes, changes[1:]):
            assert before["to"] == after["from"], changes
        return [changes[0]["from"], *(line["to"] for line in changes)]

    way = ["discovered", "verifying", "loading", "warming"]
    server.wait_for(lambda: steps("plus")[-1] == "unloaded", "the log tells the unloading")
    assert steps("plus") == [*way, "probing", "ready", "unloading", "unloaded"]
    assert steps("liar") == [*way, "quarantined"]
    assert steps("broken") == ["discovered", "verifying", "failed"]
    assert steps("fallen") == [*way, "probing", "degraded"]
