"""What the models that come with Balm must answer, by `onnxruntime` in Python: the same file in the same runtime, without Balm."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnxruntime

from harness import SHIPPED_MODELS
from tensors import binary_body, binary_input, json_input
from wire import SOCKET_S, Answer, ask

TOLERANCE = 1e-5

# Inputs in the range of the data that each was trained on.
RANGES = {"iris": (4, 0.0, 8.0), "breast_cancer": (30, 0.0, 100.0), "digits": (64, 0.0, 16.0)}

Tensors = dict[str, np.ndarray]


@cache
def reference(name: str) -> onnxruntime.InferenceSession:
    """The session that knows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = SHIPPED_MODELS / name / "1" / "model.onnx"
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def expected(name: str, inputs: Tensors) -> Tensors:
    """What `onnxruntime` answers."""
    session = reference(name)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def check(found: Tensors, right: Tensors) -> None:
    """Numbers within the tolerance, everything else equal."""
    assert list(found) == list(right)
    for name, tensor in right.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype
        if tensor.dtype == np.float32:
            np.testing.assert_allclose(found[name], tensor, rtol=0, atol=TOLERANCE, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)


# ===== questions that are asked again and again =====


@dataclass(frozen=True)
class Question:
    """A request as it is sent, and what must come."""

    model: str
    body: bytes
    headers: dict[str, str] = field(repr=False)
    right: Tensors = field(repr=False)

    @property
    def path(self) -> str:
        """Where it is asked."""
        return f"/v2/models/{self.model}/infer"

    def ask(self, address: str, timeout_s: float = SOCKET_S) -> Answer:
        """Asks it once, on a connection of its own."""
        return ask(address, "POST", self.path, self.body, self.headers, timeout_s)

    def why_wrong(self, answer: Answer) -> str | None:
        """What is wrong with an answer of 200; None when it is right."""
        try:
            check(answer.outputs(), self.right)
        except (AssertionError, ValueError, KeyError) as error:
            return str(error)
        return None


def plus_one(address: str) -> int:
    """Asks the model `plus` of `onnx_models.plus(1)`. The status; an answer must be right."""
    answer = PLUS_ONE.ask(address)
    assert answer.status != 200 or PLUS_ONE.why_wrong(answer) is None, answer
    return answer.status


X = np.array([1.0], np.float32)
PLUS_ONE = Question("plus", json.dumps({"inputs": [json_input("x", "FP32", X)]}).encode(), {}, {"y": X + 1})


@cache
def questions(inputs_of_each: int = 4) -> tuple[Question, ...]:
    """For each model some inputs of one to nine rows, each in JSON and in binary."""
    asked = []
    for name, (width, low, high) in RANGES.items():
        for number in range(inputs_of_each):
            rows = (1, 2, 5, 9)[number % 4]
            features = np.random.default_rng(number).uniform(low, high, (rows, width)).astype(np.float32)
            right = expected(name, {"features": features})
            plain = json.dumps({"inputs": [json_input("features", "FP32", features)]}).encode()
            asked.append(Question(name, plain, {}, right))
            head, raw = binary_input("features", "FP32", features)
            body, size = binary_body({"inputs": [head], "parameters": {"binary_data_output": True}}, raw)
            asked.append(Question(name, body, size, right))
    return tuple(asked)
