"""Weights in files of their own, as the `onnx` package writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import onnx_models
from harness import Repository, Server
from tensors import json_input


def answer(server: Server, model: str) -> list[list[float]]:
    """The weights, seen through the model."""
    return server.infer(model, json_input("x", "FP32", np.zeros((1, 4), np.float32))).outputs()["y"].tolist()


def test_what_the_onnx_package_exports_is_served(
    tmp_path: Path, start: Callable[..., Server], repository: Repository
) -> None:
    model, weights = onnx_models.external_by_onnx(tmp_path)
    repository.add("exported", model, files={"weights.bin": weights})
    repository.add("unlisted", model, files={"weights.bin": weights}, manifest=False)
    server = start(repository.path).wait_started()
    assert answer(server, "exported") == [onnx_models.WEIGHTS.tolist()]
    assert answer(server, "unlisted") == [onnx_models.WEIGHTS.tolist()]


def test_other_weights_under_the_same_model_are_another_digest(
    start: Callable[..., Server], repository: Repository
) -> None:
    model, weights = onnx_models.external()
    doubled = (onnx_models.WEIGHTS * 2).tobytes()
    repository.add("one", model, files={"weights.bin": weights})
    repository.add("two", model, files={"weights.bin": doubled})
    server = start(repository.path).wait_started()
    assert answer(server, "one") == [[10, 20, 30, 40]]
    assert answer(server, "two") == [[20, 40, 60, 80]]
    assert server.version("one")["digest"] != server.version("two")["digest"]


def test_the_files_may_go_once_the_model_serves(start: Callable[..., Server], repository: Repository) -> None:
    model, weights = onnx_models.external()
    folder = repository.add("weighted", model, files={"weights.bin": weights})
    server = start(repository.path).wait_started()
    for file in folder.iterdir():
        file.unlink()
    assert answer(server, "weighted") == [[10, 20, 30, 40]]
