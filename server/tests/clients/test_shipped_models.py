"""The models that come with Balm answer as `onnxruntime` in Python does: within 1e-5, labels exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from harness import SHIPPED_MODELS, Server
from right_answers import RANGES, Tensors, check, expected
from tensors import DTYPES, json_input

CLASSES = {"iris": 3, "breast_cancer": 2, "digits": 10}


def golden(name: str) -> list[dict[str, Any]]:
    """The recorded cases of a model."""
    return json.loads((SHIPPED_MODELS / name / "1" / "golden.json").read_text())["cases"]


def array(tensor: dict[str, Any]) -> np.ndarray:
    """A tensor as it stands in golden.json."""
    return np.array(tensor["data"], DTYPES[tensor["datatype"]]).reshape(tensor["shape"])


def by_triton(server: Server, name: str, features: np.ndarray) -> Tensors:
    """An answer through the client, binary both ways."""
    with triton.InferenceServerClient(server.http) as client:
        tensor = triton.InferInput("features", list(features.shape), "FP32")
        tensor.set_data_from_numpy(features)
        result = client.infer(name, [tensor])
        return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


@pytest.mark.parametrize("name", RANGES)
def test_golden_inputs_give_the_golden_outputs(shipped: Server, name: str) -> None:
    cases = golden(name)
    assert len(cases) >= 3
    for case in cases:
        inputs = {tensor["name"]: array(tensor) for tensor in case["inputs"]}
        outputs = {tensor["name"]: array(tensor) for tensor in case["outputs"]}
        found = by_triton(shipped, name, inputs["features"])
        check(found, expected(name, inputs))
        check(found, outputs)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("nested", [None, False, True], ids=["binary", "flat_json", "nested_json"])
def test_random_batches_agree_with_onnxruntime(shipped: Server, name: str, rows: int, nested: bool | None) -> None:
    width, low, high = RANGES[name]
    features = np.random.default_rng(rows).uniform(low, high, (rows, width)).astype(np.float32)
    if nested is None:
        found = by_triton(shipped, name, features)
    else:
        found = shipped.infer(name, json_input("features", "FP32", features, nested=nested)).outputs()
    check(found, expected(name, {"features": features}))
    assert found["probabilities"].shape == (rows, CLASSES[name])


@pytest.mark.parametrize("name", RANGES)
def test_a_batch_answers_as_its_rows_do(shipped: Server, name: str) -> None:
    width, low, high = RANGES[name]
    features = np.random.default_rng(3).uniform(low, high, (5, width)).astype(np.float32)
    together = by_triton(shipped, name, features)
    for row in range(5):
        check(
            by_triton(shipped, name, features[row : row + 1]),
            {key: all_[row : row + 1] for key, all_ in together.items()},
        )


@pytest.mark.parametrize("name", ["iris", "breast_cancer"])
def test_no_rows_give_no_rows(shipped: Server, name: str) -> None:
    """As in `onnxruntime`, where `digits` alone has an operator that refuses to pick from nothing."""
    found = by_triton(shipped, name, np.zeros((0, RANGES[name][0]), np.float32))
    assert found["label"].shape == (0,) and found["probabilities"].shape == (0, CLASSES[name])


def test_predictions_say_by_which_bytes_they_were_made(shipped: Server) -> None:
    for name in RANGES:
        line = (SHIPPED_MODELS / name / "1" / "SHA256SUMS").read_text().split("\n")
        (digest,) = [entry.split()[0] for entry in line if entry.endswith("  model.onnx")]
        answer = shipped.infer(name, json_input("features", "FP32", np.ones((1, RANGES[name][0]), np.float32)))
        assert answer.headers["x-model-digest"] == digest[:12]
        assert shipped.version(name)["digest"] == digest
