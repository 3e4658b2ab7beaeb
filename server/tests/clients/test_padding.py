"""Requests of different lengths that share a run: padded where the model does not mind, told where it does."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import onnx_models
from harness import Repository, Server
from tensors import json_input
from wire import Answer

ROWS_SHARE_A_RUN = "[batching]\nmax_delay_ms = 500\nmax_rows = 4\n"
PADDING = "[batching.padding]\nx = 0\nmask = 0.0\n"
CONFIG = {"defaults": {"lanes": 1, "threads": 1, "deadline_ms": 20_000}}


def ask(server: Server, model: str, length: int) -> Answer:
    """A row of that length, whose last element the mask leaves out."""
    x = np.arange(1, length + 1, dtype=np.float32)[None]
    mask = np.ones_like(x)
    mask[0, -1] = 0
    return server.infer(model, json_input("x", "FP32", x), json_input("mask", "FP32", mask))


def batching(server: Server, model: str) -> str:
    """What `/status` says of shared runs."""
    return server.version(model)["details"]["batching"]


def test_different_lengths_share_a_run(repository: Repository, start: Callable[..., Server]) -> None:
    repository.add("padded", onnx_models.masked_sum(), settings=ROWS_SHARE_A_RUN + PADDING)
    repository.add("apart", onnx_models.masked_sum(), settings="[batching]\nmax_delay_ms = 50\nmax_rows = 4\n")
    server = start(repository.path, CONFIG).wait_started()
    assert batching(server, "padded") == "on: proved at load to be right; padding on: proved at load to be right"
    assert batching(server, "apart") == "on: proved at load to be right"
    lengths = [8, 9, 10, 9]
    for model, sizes in (("padded", {4}), ("apart", {1, 2})):
        with ThreadPoolExecutor(len(lengths)) as pool:
            answers = list(pool.map(lambda length, model=model: ask(server, model, length), lengths))
        for length, answer in zip(lengths, answers, strict=True):
            outputs = answer.outputs()
            assert outputs["total"].tolist() == [length * (length - 1) / 2]
            assert outputs["double"].tolist() == [[2.0 * number for number in range(1, length + 1)]]
        found = {entry["batch_size"] for entry in server.statistics(model)["batch_stats"]}
        assert found <= sizes, f"{model} ran with {found} rows"


def test_a_model_that_minds_its_length_serves_unpadded(repository: Repository, start: Callable[..., Server]) -> None:
    repository.add("mean", onnx_models.masked_sum(masked=False), settings=ROWS_SHARE_A_RUN + PADDING)
    server = start(repository.path, CONFIG).wait_started()
    shared, padded = batching(server, "mean").split("; ", 1)
    assert shared == "on: proved at load to be right"
    assert padded.startswith('padding off: padded they are answered otherwise: output "total"')
    assert ask(server, "mean", 3).outputs()["total"].tolist() == [np.float32(8 / 3)]


def test_padding_that_a_model_cannot_have_is_refused(repository: Repository, start: Callable[..., Server]) -> None:
    wrong = {
        "unknown": (onnx_models.masked_sum(), PADDING + "y = 0\n", r"batching\.padding\.y: the model has no such input"),
        "forgotten": (onnx_models.masked_sum(), "[batching.padding]\nx = 0\n", r"batching\.padding\.mask: missing"),
        "text": (onnx_models.masked_sum(), PADDING.replace("0.0", '"0"'), r"batching\.padding\.mask must be a number"),
        "fixed": (onnx_models.identity("FP32", ["n", 4]), "[batching.padding]\nx = 0\n", r"no dimension to pad"),
    }
    for name, (model, settings, _) in wrong.items():
        repository.add(name, model, settings=settings)
    server = start(repository.path, CONFIG)
    server.wait_for(lambda: all(server.version(name)["state"] == "failed" for name in wrong), "all are refused")
    for name, (_, _, reason) in wrong.items():
        assert re.search(reason, server.version(name)["reason"]), server.version(name)
