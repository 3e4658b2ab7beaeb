"""Deadlines cover waiting and running, and end what runs. A client that has left is not computed for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import onnx_models
from harness import Repository, Server
from tensors import json_input
from wire import Answer, Wire

ENDLESS = 1 << 62
# How late an answer may be, on a machine that has other things to do.
LATE_S = 0.7


def count_to(trips: int) -> dict[str, Any]:
    """The input of the model `loop`."""
    return json_input("trips", "INT64", np.array([trips]))


def timed(server: Server, *inputs: Any, **options: Any) -> tuple[Answer, float]:
    """A prediction by `loop` and how long it took."""
    begun = time.monotonic()
    answer = server.infer("loop", *inputs, **options)
    return answer, time.monotonic() - begun


def lane_is_free(server: Server) -> bool:
    """Whether the one lane of `loop` takes a request now."""
    answer, took = timed(server, count_to(3))
    assert answer.outputs()["count_out"].tolist() == [3]
    return took < 1.0


def outcomes(server: Server, outcome: str) -> float:
    """Requests to `loop` that ended so."""
    return server.metrics().one("balm_predict_requests_total", model="loop", version="1", outcome=outcome)


class Endless:
    """A request that runs until its client leaves."""

    def __init__(self, server: Server, deadline_ms: int = 15_000) -> None:
        self.server = server
        self.wire = Wire(server.http)
        body = json.dumps({"inputs": [count_to(ENDLESS)]}).encode()
        headers = {"Content-Length": len(body), "x-request-timeout-ms": deadline_ms}
        self.wire.head("POST", "/v2/models/loop/infer", headers)
        self.wire.send(body)

    def leave(self) -> None:
        """Closes the connection, as a client that was killed does."""
        self.wire.socket.close()


@pytest.fixture
def server(toys: Server) -> Iterator[Server]:
    """The shared server, whose lane must be free when the test is over."""
    yield toys
    toys.wait_idle()
    assert lane_is_free(toys)


@pytest.fixture
def busy(server: Server) -> Iterator[Endless]:
    """A request that holds the one lane of `loop`."""
    endless = Endless(server)
    server.wait_for(lambda: server.in_flight() == 1, "the endless request is in flight")
    yield endless
    endless.leave()


@pytest.mark.parametrize(
    ("members", "headers"),
    [
        ({"parameters": {"timeout": 400_000}}, {}),
        ({}, {"x-request-timeout-ms": "400"}),
        ({}, {"grpc-timeout": "400m"}),
        ({}, {"grpc-timeout": "400000u"}),
        ({"parameters": {"timeout": 9_000_000}}, {"x-request-timeout-ms": "400", "grpc-timeout": "8S"}),
        ({"parameters": {"timeout": 400_000}}, {"x-request-timeout-ms": "8000"}),
    ],
    ids=["parameter", "header", "grpc_milliseconds", "grpc_microseconds", "shortest_header", "shortest_parameter"],
)
def test_an_endless_run_ends_at_its_deadline(server: Server, members: Any, headers: Any) -> None:
    before = outcomes(server, "deadline")
    answer, took = timed(server, count_to(ENDLESS), headers=headers, **members)
    assert answer.status == 504, answer
    assert 0.4 <= took < 0.4 + LATE_S
    assert "400 ms" in answer.error and "ran" in answer.error
    assert lane_is_free(server), "the run was ended, not abandoned"
    assert outcomes(server, "deadline") == before + 1


def test_twenty_deadlines_in_a_row_cost_no_lane(server: Server) -> None:
    for _ in range(20):
        answer, _ = timed(server, count_to(ENDLESS), headers={"x-request-timeout-ms": "20"})
        assert answer.status == 504
    assert server.version("loop")["lanes"] == {"wanted": 1, "healthy": 1}
    assert server.metrics().sum("balm_lane_restarts_total") == 0


def test_a_run_of_many_long_steps_ends_between_two_of_them(toys: Server) -> None:
    rows = np.zeros((1024, 256), np.float32)
    begun = time.monotonic()
    answer = toys.infer_binary("chain", ("x", "FP32", rows), headers={"x-request-timeout-ms": "200"})
    took = time.monotonic() - begun
    assert answer.status == 504, answer
    assert 0.2 <= took < 0.2 + LATE_S
    toys.wait_idle()
    few = np.ones((1, 256), np.float32)
    assert toys.infer_binary("chain", ("x", "FP32", few)).outputs()["y"].tolist() == few.tolist()


def test_waiting_counts_and_costs_no_run(server: Server, busy: Endless) -> None:
    runs = server.statistics("loop")["execution_count"]
    answer, took = timed(server, count_to(3), headers={"x-request-timeout-ms": "300"})
    assert answer.status == 504, answer
    assert 0.3 <= took < 0.3 + LATE_S
    assert "300 ms" in answer.error and "waited" in answer.error
    busy.leave()
    server.wait_idle()
    assert server.statistics("loop")["execution_count"] == runs


def test_a_client_that_leaves_frees_the_lane(server: Server, busy: Endless) -> None:
    before = outcomes(server, "cancelled")
    busy.leave()
    assert lane_is_free(server), "within a second, of the fifteen that the run had left"
    server.wait_for(lambda: outcomes(server, "cancelled") == before + 1, "the request is counted as cancelled")


def test_a_client_that_leaves_the_queue_is_not_computed_for(server: Server, busy: Endless) -> None:
    waiting = [Endless(server) for _ in range(3)]
    server.wait_for(lambda: server.in_flight() == 4, "three wait behind the one that runs")
    for each in waiting:
        each.leave()
    busy.leave()
    assert lane_is_free(server), "none of the three ran, each of which would have been endless"


def test_other_models_go_on_while_one_is_held(server: Server, busy: Endless) -> None:
    flower = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
    begun = time.monotonic()
    assert server.infer("iris", json_input("features", "FP32", flower)).status == 200
    assert time.monotonic() - begun < 1.0


def test_who_waits_is_answered_when_the_lane_comes_free(server: Server, busy: Endless) -> None:
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.infer, "loop", count_to(trips)) for trips in (4, 5, 6)]
        server.wait_for(lambda: server.in_flight() == 4, "three wait behind the one that runs")
        busy.leave()
        assert [answer.result().outputs()["count_out"].tolist() for answer in waiting] == [[4], [5], [6]]


def test_zero_means_no_deadline_of_its_own(server: Server) -> None:
    answer = server.infer("loop", count_to(3), parameters={"timeout": 0})
    assert answer.outputs()["count_out"].tolist() == [3]


@pytest.mark.parametrize("headers", [{"x-request-timeout-ms": "0"}, {"grpc-timeout": "0S"}], ids=["ours", "grpc"])
def test_zero_in_a_header_is_a_mistake_that_is_told(server: Server, headers: dict[str, str]) -> None:
    """One client means "at once" by it, the next "never": no guess is right for both."""
    answer = server.infer("loop", count_to(3), headers=headers)
    assert answer.status == 400, answer
    (name,) = headers
    assert name in answer.error and "0" in answer.error
    assert answer.json["code"] == "header"


def test_a_deadline_that_is_over_on_arrival_is_504(server: Server) -> None:
    runs = server.statistics("loop")["execution_count"]
    answer = server.infer("loop", count_to(3), headers={"grpc-timeout": "1n"})
    assert answer.status == 504, answer
    server.wait_idle()
    assert server.statistics("loop")["execution_count"] == runs


def test_a_body_that_is_still_coming_does_not_stop_the_clock(server: Server) -> None:
    begun = time.monotonic()
    with Wire(server.http) as wire:
        wire.head("POST", "/v2/models/loop/infer", {"Content-Length": 1000, "x-request-timeout-ms": 300})
        wire.send(b"{")
        answer = wire.answer()
    assert answer and answer.status == 504, answer
    assert 0.3 <= time.monotonic() - begun < 0.3 + LATE_S
    assert "300 ms" in answer.error and "read" in answer.error


def test_a_second_lane_goes_on_while_the_first_is_held(start: Callable[..., Server], repository: Repository) -> None:
    repository.add("loop", onnx_models.loop(), settings="lanes = 2\n")
    server = start(repository.path).wait_started()
    server.wait_for(lambda: server.version("loop")["lanes"] == {"wanted": 2, "healthy": 2}, "two lanes")
    endless = Endless(server)
    server.wait_for(lambda: server.in_flight() == 1, "the endless request is in flight")
    for _ in range(5):
        assert lane_is_free(server)
    second = Endless(server)
    server.wait_for(lambda: server.in_flight() == 2, "the second is in flight, too")
    answer, _ = timed(server, count_to(3), headers={"x-request-timeout-ms": "100"})
    assert answer.status == 504, "there is no third lane"
    endless.leave()
    assert lane_is_free(server)
    second.leave()


def test_the_models_own_deadline_holds_for_who_names_none(start: Callable[..., Server], repository: Repository) -> None:
    settings = "default_deadline_ms = 300\nmax_deadline_ms = 600\n"
    repository.add("loop", onnx_models.loop(), settings=settings)
    server = start(repository.path).wait_started()
    for headers, allowance in ({}, 300), ({"x-request-timeout-ms": "25000"}, 600):
        answer, took = timed(server, count_to(ENDLESS), headers=headers)
        assert answer.status == 504, answer
        assert allowance / 1000 <= took < allowance / 1000 + LATE_S
        assert f"{allowance} ms" in answer.error
