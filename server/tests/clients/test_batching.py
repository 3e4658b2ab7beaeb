"""Requests that share runs: each gets its own answer, and models that mix rows are found out at their load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import onnx_models
from harness import Repository, Server
from tensors import json_input

REQUESTS = 400


def centred() -> bytes:
    """Takes the mean over the batch off each row: what looks like a batch and must never be shared."""
    made = onnx_models.model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [onnx_models.tensor("x", "FP32", ["rows", 3])],
        [onnx_models.tensor("y", "FP32", ["rows", 3])],
    )
    return made.SerializeToString()


def one_answer() -> bytes:
    """One row comes out, whatever goes in."""
    made = onnx_models.model(
        [helper.make_node("ReduceMax", ["x"], ["y"], axes=[0], keepdims=1)],
        [onnx_models.tensor("x", "FP32", ["rows", 3])],
        [onnx_models.tensor("y", "FP32", ["rows", 3])],
    )
    return made.SerializeToString()


def picky() -> bytes:
    """y = table[x]: a row whose index is out of the table fails the whole run."""
    made = onnx_models.model(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [onnx_models.tensor("x", "INT64", ["rows"])],
        [onnx_models.tensor("y", "FP32", ["rows", 2])],
        [numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(10, 2), "table")],
    )
    return made.SerializeToString()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One lane and a wait on purpose, so that requests meet in runs for certain."""
    folder: Path = tmp_path_factory.mktemp("batching")
    repository = Repository(folder / "models")
    together = "lanes = 1\n[batching]\nmax_delay_ms = 20\nmax_rows = 64\n"
    repository.add("simple", onnx_models.sum_and_difference(), settings=together)
    repository.add("picky", picky(), settings=together)
    repository.add("centred", centred(), settings=together)
    repository.add("one_answer", one_answer(), settings=together)
    repository.add("off", onnx_models.sum_and_difference(), settings="[batching]\nenabled = false\n")
    started = Server(folder, repository.path, {"defaults": {"deadline_ms": 20_000}})
    try:
        yield started.wait_started().wait_settled()
    finally:
        code = started.stop()
    assert code == 0, started.stderr


def batching(server: Server, model: str) -> str:
    return server.version(model)["details"]["batching"]


def test_each_of_many_gets_its_own_rows(server: Server) -> None:
    assert batching(server, "simple").startswith("on: ")
    random = np.random.default_rng(1)
    requests = [random.integers(-1000, 1000, size=(2, random.integers(1, 4), 16), dtype=np.int32) for _ in range(REQUESTS)]

    def ask(pair: np.ndarray) -> None:
        answer = server.infer("simple", json_input("INPUT0", "INT32", pair[0]), json_input("INPUT1", "INT32", pair[1]))
        outputs = answer.outputs()
        np.testing.assert_array_equal(outputs["OUTPUT0"], pair[0] + pair[1])
        np.testing.assert_array_equal(outputs["OUTPUT1"], pair[0] - pair[1])

    before = server.statistics("simple")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, requests))
    after = server.statistics("simple")
    runs = after["execution_count"] - before["execution_count"]
    assert runs < REQUESTS / 2, "they did not meet"
    assert after["inference_count"] - before["inference_count"] == sum(pair.shape[1] for pair in requests)
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == REQUESTS
    assert max(batch["batch_size"] for batch in after["batch_stats"]) > 3
    assert server.metrics().one("balm_batch_rows_count", model="simple", version="1") >= runs


def test_one_bad_row_harms_no_neighbour(server: Server) -> None:
    def ask(index: int) -> int:
        answer = server.infer("picky", json_input("x", "INT64", np.array([index])))
        if answer.status == 200:
            np.testing.assert_array_equal(answer.outputs()["y"], [[2 * index, 2 * index + 1]])
        return answer.status

    indices = [99 if position % 7 == 3 else position % 10 for position in range(140)]
    with ThreadPoolExecutor(14) as pool:
        statuses = list(pool.map(ask, indices))
    assert statuses == [400 if index == 99 else 200 for index in indices]


@pytest.mark.parametrize("model", ["centred", "one_answer"])
def test_a_model_that_mixes_rows_is_found_out(server: Server, model: str) -> None:
    assert batching(server, model).startswith("off: "), batching(server, model)
    random = np.random.default_rng(2)

    def ask(rows: np.ndarray) -> None:
        found = server.infer(model, json_input("x", "FP32", rows)).outputs()["y"]
        expected = rows - rows.mean(axis=0) if model == "centred" else rows.max(axis=0, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [random.normal(size=(2, 3)).astype(np.float32) for _ in range(80)]))
    statistics = server.statistics(model)
    assert statistics["inference_count"] == 2 * statistics["execution_count"] or model == "one_answer"


def test_it_can_be_switched_off_and_the_configuration_tells(server: Server) -> None:
    assert batching(server, "off") == "off: model.toml says so"
    assert "dynamic_batching" not in server.get("/v2/models/off/config").json
    assert server.get("/v2/models/simple/config").json["dynamic_batching"] == {"max_queue_delay_microseconds": 20_000}


def test_what_cannot_be_a_batch_is_not_made_one(start: Callable[..., Server], repository: Repository) -> None:
    repository.add("scalar", onnx_models.identity("FP32", []), settings="[batching]\nenabled = true\n")
    server = start(repository.path).wait_settled()
    version = server.version("scalar")
    assert version["state"] == "failed"
    assert "batching.enabled is true" in version["reason"]


def test_classes_are_taken_from_the_header_or_the_priority(server: Server) -> None:
    inputs = [json_input(name, "INT32", np.ones((1, 16), np.int32)) for name in ("INPUT0", "INPUT1")]
    for word in ("critical", "default", "sheddable", "best-effort", "BEST-EFFORT"):
        assert server.infer("simple", *inputs, headers={"x-request-class": word}).status == 200
    assert server.infer("simple", *inputs, parameters={"priority": 1}).status == 200
    answer = server.infer("simple", *inputs, headers={"x-request-class": "urgent"})
    assert answer.status == 400
    assert "x-request-class" in answer.error and "best-effort" in answer.error
