"""`/metrics`: what promtool accepts, and counters that say what happened."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import onnx_models
from harness import Metrics, Repository, Server
from tensors import json_input
from wire import Wire

X = np.array([1.0, 2.0], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose counters no other test moves."""
    folder = tmp_path_factory.mktemp("metrics")
    repository = Repository(folder / "models")
    repository.add("plus", onnx_models.plus(1))
    repository.add("gather", onnx_models.gather())
    repository.add("loop", onnx_models.loop(), settings="[limits]\nmax_in_flight = 1\n")
    repository.add("bad", b"not a model")
    made = Server(folder, repository.path, {"defaults": {"lanes": 1, "threads": 1}, "repository": {"readiness": "any"}, "management": {"triton_metrics": True}})
    try:
        yield made.wait_started()
    finally:
        code = made.stop()
    assert code == 0, made.stderr


class Change:
    """What samples grew by since it was made."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.before = server.metrics()

    def of(self, name: str, **labels: str) -> float:
        """The growth of the sum of the matching samples."""
        return self.server.metrics().sum(name, **labels) - self.before.sum(name, **labels)

    def outcomes(self, model: str) -> dict[str, float]:
        """How requests to the model ended since."""
        grown = {
            labels["outcome"]: self.of("balm_predict_requests_total", model=model, outcome=labels["outcome"])
            for labels, _ in self.before.find("balm_predict_requests_total", model=model)
        }
        return {outcome: count for outcome, count in grown.items() if count}


def good(server: Server) -> None:
    """Two rows, well."""
    assert server.infer("plus", json_input("x", "FP32", X)).status == 200


def count_to(trips: int) -> dict[str, Any]:
    """The input of `loop`."""
    return json_input("trips", "INT64", np.array([trips]))


def promtool(text: bytes) -> tuple[int, list[str]]:
    """Exit code and advice of `promtool check metrics`."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([program, "check", "metrics"], input=text, capture_output=True, timeout=60)
    return done.returncode, (done.stdout + done.stderr).decode().splitlines()


def test_promtool_accepts_the_metrics(shipped: Server) -> None:
    row = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
    assert shipped.infer("iris", json_input("features", "FP32", row)).status == 200
    answer = shipped.probe("/metrics")
    assert answer.headers.get_content_type() == "text/plain"
    assert len(answer.body.splitlines()) > 100
    assert promtool(answer.body) == (0, [])
    assert b"nv_" not in answer.body, "Triton's names are there when they are asked for"


def test_with_tritons_names_promtool_has_advice_on_those_alone(server: Server) -> None:
    good(server)
    code, advice = promtool(server.probe("/metrics").body)
    # All of it can be read (1 would be an error). Triton's names are Triton's, and promtool advises against many.
    assert code == 3
    assert advice
    assert [line for line in advice if not line.startswith("nv_")] == []


def test_every_family_has_help_and_type_once(server: Server) -> None:
    lines = server.metrics().text.splitlines()
    for kind in ("# HELP ", "# TYPE "):
        names = [line.split()[2] for line in lines if line.startswith(kind)]
        assert names and len(names) == len(set(names))


def test_a_good_request_is_counted_once_everywhere(server: Server) -> None:
    change = Change(server)
    good(server)
    assert change.outcomes("plus") == {"ok": 1}
    for histogram in ("balm_predict_seconds", "balm_predict_queue_seconds", "balm_predict_run_seconds"):
        assert change.of(f"{histogram}_count", model="plus") == 1, histogram
        assert change.of(f"{histogram}_sum", model="plus") > 0, histogram
        assert change.of(f"{histogram}_bucket", model="plus", le="+Inf") == 1, histogram
    assert change.of("nv_inference_request_success", model="plus") == 1
    assert change.of("nv_inference_count", model="plus") == 2, "rows"
    assert change.of("nv_inference_exec_count", model="plus") == 1, "runs"
    assert change.of("nv_inference_request_failure", model="plus") == 0
    for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert change.of(f"nv_inference_{name}_duration_us", model="plus") >= 0, name
    assert change.of("balm_http_requests_total", route="/v2/models/{model}/infer", status="200") == 1


def test_each_way_to_fail_has_its_outcome(server: Server) -> None:
    change = Change(server)
    assert server.infer("plus", json_input("y", "FP32", X)).status == 400
    assert server.ask("POST", "/v2/models/plus/infer", "not json").status == 400
    assert change.outcomes("plus") == {"bad_request": 2}

    assert server.infer("gather", json_input("index", "INT64", np.array([99]))).status == 400
    assert change.outcomes("gather") == {"bad_request": 1}

    assert server.infer("loop", count_to(1 << 62), headers={"x-request-timeout-ms": "50"}).status == 504
    assert change.outcomes("loop") == {"deadline": 1}
    assert change.of("nv_inference_request_failure", model="loop") == 1


def test_shed_requests_are_counted_by_reason(server: Server) -> None:
    change = Change(server)
    with Wire(server.http) as held:
        held.head("POST", "/v2/models/loop/infer", {"Content-Length": 1000})
        server.wait_for(
            lambda: server.metrics().one("balm_model_in_flight_requests", model="loop") == 1, "one is in flight"
        )
        assert server.metrics().one("balm_in_flight_bytes") == 1000
        assert server.infer("loop", count_to(3)).status == 503
        assert change.of("balm_shed_total", model="loop", reason="model_in_flight") == 1
        assert change.outcomes("loop") == {"shed": 1}
    server.wait_idle()
    server.wait_for(lambda: sum(change.outcomes("loop").values()) == 2, "the one that broke off is counted, too")


def test_requests_to_what_is_not_there_make_no_label(server: Server) -> None:
    change = Change(server)
    for name in ("nobody", "iris'\"\\\n", "x" * 500):
        assert server.infer(name.encode().hex(), json_input("x", "FP32", X)).status == 404
        assert server.get("/" + name.encode().hex()).status == 404
    text = server.metrics().text
    assert "6e6f626f6479" not in text
    assert len(server.metrics().samples) - len(change.before.samples) < 10


def test_states_lanes_and_providers_are_gauges(server: Server) -> None:
    metrics = server.metrics()
    for model, right in {"plus": "ready", "bad": "failed"}.items():
        states = {labels["state"]: value for labels, value in metrics.find("balm_model_state", model=model)}
        assert states.pop(right) == 1
        assert states and not any(states.values()), "one state at a time, the others are there as 0"
    for kind in ("wanted", "healthy"):
        assert metrics.one("balm_model_lanes", model="plus", version="1", kind=kind) == 1
    assert metrics.one("balm_model_provider_info", model="plus", provider="cpu", degraded="false") == 1
    for phase in ("read", "build", "probe"):
        assert metrics.one("balm_model_load_seconds", model="plus", version="1", phase=phase) >= 0
    assert metrics.one("balm_queue_depth", model="plus", version="1") == 0


def test_the_process_and_its_parts_are_told(server: Server) -> None:
    metrics = server.metrics()
    assert metrics.one("balm_build_info") == 1
    (info,) = [labels for labels, value in metrics.find("balm_onnxruntime_info") if value == 1]
    assert info["version"].startswith("1.")
    assert metrics.one("process_resident_memory_bytes") > 10 << 20
    before = metrics.one("process_cpu_seconds_total")
    assert server.infer("loop", count_to(200_000), headers={"x-request-timeout-ms": "20000"}).status == 200
    # The kernel counts in hundredths of a second, the family may in whole ones.
    assert server.metrics().one("process_cpu_seconds_total") >= before


def test_what_was_let_go_is_gone_from_the_gauges(server: Server) -> None:
    assert server.unload("gather").status == 200
    metrics = server.metrics()
    assert metrics.one("balm_model_state", model="gather", state="unloaded") == 1
    assert not list(metrics.find("balm_model_provider_info", model="gather"))
    assert metrics.sum("balm_model_lanes", model="gather", kind="healthy") == 0
    assert server.load("gather").status == 200
    assert server.metrics().one("balm_model_provider_info", model="gather") == 1


def test_counters_do_not_fall_when_a_model_is_loaded_anew(server: Server) -> None:
    good(server)
    before: Metrics = server.metrics()
    assert server.unload("plus").status == 200
    assert server.load("plus").status == 200
    after = server.metrics()
    for name in ("balm_predict_requests_total", "balm_predict_seconds_count", "balm_model_loads_total"):
        assert after.sum(name, model="plus") >= before.sum(name, model="plus"), name
    assert (
        after.one("balm_model_loads_total", model="plus", result="ok")
        == before.one("balm_model_loads_total", model="plus", result="ok") + 1
    )


def test_two_scrapes_at_once_see_the_same_families(server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        scrapes = list(pool.map(lambda _: {name for name, _, _ in server.metrics().samples}, range(40)))
    assert all(scrape == scrapes[0] for scrape in scrapes)
