"""`POST /v1/models/{m}:predict`, for a person with curl: rows and columns, as TF-Serving and KServe v1 have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness import Server
from tensors import json_input
from wire import Answer

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 5.6, 2.4]]


def predict(server: Server, model: str, members: Any) -> Answer:
    """One request."""
    return server.post(f"/v1/models/{model}:predict", members)


def test_instances_give_one_prediction_each(shipped: Server) -> None:
    right = shipped.infer("iris", json_input("features", "FP32", np.array(ROWS, np.float32))).outputs()
    answer = predict(shipped, "iris", {"instances": ROWS})
    assert answer.status == 200, answer
    assert list(answer.json) == ["predictions"]
    predictions = answer.json["predictions"]
    assert [entry["label"] for entry in predictions] == [0, 2]
    for entry, row in zip(predictions, right["probabilities"], strict=True):
        assert entry["probabilities"] == pytest.approx(row, abs=1e-6)


def test_instances_may_name_their_input(shipped: Server) -> None:
    answer = predict(shipped, "iris", {"instances": [{"features": row} for row in ROWS]})
    assert answer.status == 200, answer
    assert [entry["label"] for entry in answer.json["predictions"]] == [0, 2]


def test_inputs_give_whole_tensors(shipped: Server) -> None:
    for inputs in (ROWS, {"features": ROWS}):
        answer = predict(shipped, "iris", {"inputs": inputs})
        assert answer.status == 200, answer
        assert answer.json["outputs"]["label"] == [0, 2]
        assert np.array(answer.json["outputs"]["probabilities"]).shape == (2, 3)


def test_a_model_with_one_output_answers_without_its_name(toys: Server) -> None:
    assert predict(toys, "identity_int32", {"instances": [[1, 2], [3, 4]]}).json == {"predictions": [[1, 2], [3, 4]]}
    assert predict(toys, "identity_int32", {"inputs": [[1, 2], [3, 4]]}).json == {"outputs": [[1, 2], [3, 4]]}


def test_several_inputs_are_given_by_name(toys: Server) -> None:
    instance = {"INPUT0": [2] * 16, "INPUT1": [1] * 16}
    answer = predict(toys, "simple", {"instances": [instance]})
    assert answer.json == {"predictions": [{"OUTPUT0": [3] * 16, "OUTPUT1": [1] * 16}]}
    answer = predict(toys, "simple", {"inputs": {"INPUT0": [[2] * 16], "INPUT1": [[1] * 16]}})
    assert answer.json == {"outputs": {"OUTPUT0": [[3] * 16], "OUTPUT1": [[1] * 16]}}


def test_texts_and_truths_keep_their_type(toys: Server) -> None:
    assert predict(toys, "identity_bytes", {"instances": [["grüße", ""]]}).json == {"predictions": [["grüße", ""]]}
    assert predict(toys, "identity_bool", {"instances": [[True, False]]}).json == {"predictions": [[True, False]]}
    assert predict(toys, "identity_fp16", {"instances": [[1.5]]}).json == {"predictions": [[1.5]]}


@pytest.mark.parametrize(
    ("model", "members", "status", "says"),
    [
        ("nobody", {"instances": ROWS}, 404, "nobody"),
        ("iris", {}, 400, "instances"),
        ("iris", {"instances": ROWS, "inputs": ROWS}, 400, "not both"),
        ("iris", {"instances": "flowers"}, 400, "instances"),
        ("iris", {"instances": [[1, 2, 3]]}, 400, "features"),
        ("iris", {"instances": [[1, 2, 3, 4], [1, 2, 3]]}, 400, "instances[1]"),
        ("iris", {"instances": [["a", 2, 3, 4]]}, 400, "instances[0][0]"),
        ("iris", {"instances": [{"petals": [1, 2, 3, 4]}]}, 400, "petals"),
        ("iris", {"inputs": {"petals": ROWS}}, 400, "petals"),
        ("simple", {"inputs": {"INPUT0": [[0] * 16]}}, 400, "INPUT1"),
        ("simple", {"instances": [[0] * 16]}, 400, "instances"),
    ],
)
def test_a_mistake_is_named(toys: Server, model: str, members: Any, status: int, says: str) -> None:
    answer = predict(toys, model, members)
    assert answer.status == status, answer
    assert says in answer.error


def test_another_verb_is_refused(toys: Server) -> None:
    for path in ("/v1/models/iris:explain", "/v1/models/iris:"):
        answer = toys.post(path, {"instances": ROWS})
        assert answer.status in (400, 404), answer
        assert ":predict" in answer.error or path in answer.error
