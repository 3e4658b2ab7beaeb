"""`adaptive_lanes`: how many lanes run at once is learned, and shown, and nobody is left waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import onnx_models
from harness import Repository, Server
from tensors import json_input

LANES = 4
REQUESTS = 400


def test_the_limit_is_learned_and_every_request_answered(
    repository: Repository, start: Callable[..., Server]
) -> None:
    settings = f"lanes = {LANES}\nadaptive_lanes = true\n[limits]\nmax_wait_ms = 60000\n"
    repository.add("adaptive", onnx_models.matmul_chain(width=64, depth=50), settings=settings)
    repository.add("all", onnx_models.plus(1), settings=f"lanes = {LANES}\n")
    server = start(repository.path, {"defaults": {"threads": 1, "deadline_ms": 20_000}}).wait_settled()
    limit = lambda model: server.metrics().one("balm_adaptive_limit", model=model)
    assert (limit("adaptive"), limit("all")) == (1, LANES)
    row = json_input("x", "FP32", np.ones((1, 64), np.float32))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.infer("adaptive", row).status, range(REQUESTS)))
    assert answers == [200] * REQUESTS
    assert 1 <= limit("adaptive") <= LANES
    server.wait_idle()
    # What is let go while its lanes sleep is gone.
    assert server.unload("adaptive").status == 200
    assert server.infer("adaptive", row).status == 503
