"""Lanes that hang are told from lanes that are busy, replaced, and told of; what cannot be replaced any more is said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onnx_models
from harness import Repository, Server, restarts
from kubelet import Kubelet
from tensors import json_input
from wire import Wire

WATCH = Callable[[Server], Kubelet]

# Some ten seconds of one node, which looks up from it never.
HANGS = 100_000
DEADLINE_S = 0.4
# What the watchdog gives a run that was told to end, at the least, and how late its verdict may be.
GRACE_S = 2.0
LATE_S = 0.2
# What a test adds for a machine that has other things to do, and for asking every so often.
SLACK_S = 0.5


def boxes(count: int) -> dict[str, Any]:
    """The input of the model `deaf`."""
    return json_input("boxes", "INT64", np.array([count]))


@pytest.fixture
def serve(repository: Repository, start: Callable[..., Server]) -> Callable[..., Server]:
    """Starts a server of a model that heeds no cancel, one that does, and one that can be made to fail."""
    settings = "lanes = {}\n[limits]\nmax_wait_ms = 60000\n"
    repository.add("deaf", onnx_models.deaf(), settings=settings.format(2))
    repository.add("loop", onnx_models.loop(), settings=settings.format(1))
    repository.add("bomb", onnx_models.bomb(), settings=settings.format(1))
    config = {"defaults": {"threads": 1, "deadline_ms": 20_000, "max_deadline_ms": 20_000}}
    return lambda *flags: start(repository.path, config, flags=flags).wait_settled()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """Such a server as it is by default."""
    return serve()


def hang(server: Server) -> float:
    """A request that is over at its deadline while its run goes on. When it was sent."""
    begun = time.monotonic()
    headers = {"x-request-timeout-ms": str(int(DEADLINE_S * 1000))}
    answer = server.infer("deaf", boxes(HANGS), headers=headers)
    assert answer.status == 504, answer
    assert time.monotonic() - begun < DEADLINE_S + SLACK_S
    return begun


def incidents(server: Server) -> list[dict[str, Any]]:
    """What `/status` tells."""
    return server.status().get("incidents", [])


def test_what_heeds_its_cancel_costs_no_lane(server: Server, watch: WATCH) -> None:
    """T12."""
    watch(server)
    headers = {"x-request-timeout-ms": "400"}
    answer = server.infer("loop", json_input("trips", "INT64", np.array([1 << 62])), headers=headers)
    assert answer.status == 504, answer
    begun = time.monotonic()
    assert server.infer("loop", json_input("trips", "INT64", np.array([3]))).status == 200
    assert time.monotonic() - begun <= 1.0, "the lane was back late"
    metrics = server.metrics()
    assert metrics.one("balm_heal_actions_total", rung="cancel", reason="deadline") == 1
    assert metrics.sum("balm_heal_actions_total", rung="lane") == 0
    assert incidents(server) == []


def test_a_lane_that_heeds_no_cancel_is_replaced(server: Server, watch: WATCH) -> None:
    """T13, by a model that computes on."""
    watch(server)
    begun = hang(server)
    (incident,) = server.wait_for(lambda: incidents(server), "the lane is called hung")
    seen = time.monotonic() - begun
    assert seen <= DEADLINE_S + GRACE_S + LATE_S + SLACK_S, seen
    assert incident["detected_after_ms"] <= (GRACE_S + LATE_S) * 1000, incident
    assert server.probe("/ready").status == 200, "the other lane lives"
    assert server.infer("deaf", boxes(10)).status == 200
    assert server.in_flight() == 0, "what the lane held was given back"
    server.wait_for(lambda: "healed_after_ms" in incidents(server)[0], "the lane is replaced")
    (incident,) = incidents(server)
    assert incident["healed_after_ms"] <= 1000, incident
    # Where others took the processor it may have had less than half of it; it was not blocked in any case.
    assert incident["reason"] in ("hung_spinning", "hung_between"), incident
    assert incident["deeds"][0]["rung"] == "lane"
    assert "then the lane was replaced; well again" in incident["story"]
    assert incident["story"] in server.stderr, "the log tells the same story"
    assert server.version("deaf")["lanes"] == {"wanted": 2, "healthy": 2}
    metrics = server.metrics()
    assert metrics.one("balm_heal_actions_total", rung="lane", reason=incident["reason"]) == 1
    assert metrics.one("balm_heal_detect_seconds_count") == 1
    assert metrics.one("balm_heal_repair_seconds_count") == 1
    assert metrics.one("balm_lanes_abandoned") == 1
    assert server.probe("/live").status == 200
    server.wait_for(lambda: server.metrics().one("balm_lanes_abandoned") == 0, "the node has come to its end", 180)
    assert server.version("deaf")["lanes"] == {"wanted": 2, "healthy": 2}, "and takes no lane with it"


@pytest.mark.parametrize("flags", [[], ["--single-process"]], ids=["supervised", "single-process"])
def test_all_lanes_hang_and_more_than_may_be_replaced(
    serve: Callable[..., Server], flags: list[str], watch: WATCH
) -> None:
    """T14, then T15: two are replaced, the third is the worker's end, or, where there is no supervisor, the kubelet's turn."""
    server = serve(*flags)
    kubelet = watch(server)
    begun = time.monotonic()
    wires = []
    body = json.dumps({"inputs": [boxes(HANGS)]}).encode()
    for _ in range(2):
        wire = Wire(server.http)
        wire.head("POST", "/v2/models/deaf/infer", {"Content-Length": len(body), "x-request-timeout-ms": 400})
        wire.send(body)
        wires.append(wire)
    server.wait_for(lambda: len(incidents(server)) == 2, "both are called hung")
    assert time.monotonic() - begun <= DEADLINE_S + GRACE_S + LATE_S + 2 * SLACK_S
    server.wait_for(lambda: server.probe("/ready").status == 200, "it serves again", 10)
    assert server.infer("deaf", boxes(10)).status == 200
    assert server.probe("/live").status == 200, "nobody has to restart it"
    assert server.metrics().one("balm_lanes_abandoned") <= 2
    for wire in wires:
        answer = wire.answer()
        assert answer is not None and answer.status == 504
        wire.socket.close()
    hang(server)
    if not flags:
        replaced = "lanes hung too often"
        server.wait_for(lambda: restarts(server) == {"lanes": 1}, "the worker is replaced")
        server.wait_for(lambda: server.probe("/ready").status == 200, "another serves")
        assert replaced in server.status()["supervisor"]["last_end"]["how"]
        assert server.infer("deaf", boxes(10)).status == 200
        assert server.probe("/live").status == 200
        return
    server.wait_for(lambda: server.probe("/live").status == 503, "it is said to be beyond repair")
    answer = server.probe("/live")
    assert "the worker has to be replaced; lanes hung too often: lane" in answer.text
    assert server.metrics().one("balm_heal_actions_total", rung="worker", reason="lane_budget") == 1
    # Five times what a kubelet of this test waits from one probe to the next.
    time.sleep(1)
    assert kubelet.verdict().restarts == 1, "it takes its turn"


def test_a_model_that_mostly_fails_is_closed_off_and_tried_again(server: Server) -> None:
    def ask(elements: int) -> Any:
        return server.infer("bomb", json_input("elements", "INT64", np.array([elements])))

    assert ask(3).outputs()["y"].tolist() == [3]
    answers = [ask(1 << 45) for _ in range(19)]
    assert [answer.status for answer in answers] == [500] * 19, answers[0]
    refused = ask(3)
    assert (refused.status, refused.json["code"]) == (503, "breaker_open"), refused
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["x-shed-reason"] == "breaker_open"
    assert server.infer("deaf", boxes(10)).status == 200, "other models are none of it"
    assert server.probe("/ready").status == 200
    metrics = server.metrics()
    assert metrics.one("balm_breaker_state", model="bomb", state="refusing") == 1
    assert metrics.sum("balm_shed_total", model="bomb", reason="breaker_open") == 1
    # The canary goes first, then five of these.
    server.wait_for(lambda: ask(3).status == 200, "people may try")
    assert all(ask(3).status == 200 for _ in range(4))
    assert server.metrics().one("balm_breaker_state", model="bomb", state="accepting") == 1
    assert server.metrics().one("balm_canaries_total", model="bomb", version="1", result="answered") >= 1
    assert incidents(server) == []
