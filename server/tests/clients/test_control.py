"""Loading and unloading, by the unmodified client: both answer only when it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

import onnx_models
from harness import Repository, Server, base64_text, sha256
from tensors import json_input
from wire import Answer, Wire

X = np.array([1.0], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """What the server of this module serves."""
    repository = Repository(tmp_path_factory.mktemp("control") / "models")
    repository.add("plus", onnx_models.plus(1))
    repository.add("other", onnx_models.plus(2))
    return repository


@pytest.fixture(scope="module")
def server(folder: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models come and go."""
    made = Server(tmp_path_factory.mktemp("control_server"), folder.path, {"defaults": {"lanes": 1}})
    try:
        yield made.wait_started()
    finally:
        code = made.stop()
    assert code == 0, made.stderr


def test_more_control_requests_than_places_are_turned_away_by_the_form_of_every_error(server: Server) -> None:
    places = 32
    wires = [Wire(server.http) for _ in range(places)]
    for wire in wires:
        wire.head("POST", "/v2/repository/index", {"Content-Length": 10})
        wire.send(b"{")
    server.wait_for(lambda: server.get("/v2").status == 503, "every place is taken")
    refused = server.get("/v2/models/plus")
    assert refused.status == 503 and "control" in refused.error
    assert refused.json["code"] == "overloaded" and refused.headers["x-shed-reason"] == "control"
    assert server.get("/v2/models/plus/ready").status == 200, "health has no such places"
    for wire in wires:
        wire.socket.close()
    server.wait_for(lambda: server.get("/v2").status == 200, "the places are free")


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    """The client."""
    with triton.InferenceServerClient(server.http) as made:
        yield made


def answer(client: triton.InferenceServerClient, model: str) -> float:
    """A prediction for 1."""
    tensor = triton.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(X)
    return float(client.infer(model, [tensor]).as_numpy("y")[0])


def state(client: triton.InferenceServerClient, model: str, version: str = "1") -> str | None:
    """What the index says."""
    for entry in client.get_model_repository_index():
        if (entry["name"], entry["version"]) == (model, version):
            return entry["state"]
    return None


def test_the_index_lists_every_model_with_its_state(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    for entry in index:
        assert {"name", "version", "state", "reason"} <= set(entry)
    assert {(entry["name"], entry["version"], entry["state"]) for entry in index} >= {("plus", "1", "READY")}


def test_a_model_is_let_go_and_comes_back(server: Server, client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("plus")
    client.unload_model("plus")
    assert not client.is_model_ready("plus")
    assert state(client, "plus") == "UNAVAILABLE"
    ready = server.post("/v2/repository/index", {"ready": True}).json
    assert [entry["name"] for entry in ready] == ["other"]
    with pytest.raises(InferenceServerException, match="unloaded") as caught:
        answer(client, "plus")
    assert caught.value.status() == "503"
    assert answer(client, "other") == 3
    client.load_model("plus")
    assert client.is_model_ready("plus")
    assert state(client, "plus") == "READY"
    assert answer(client, "plus") == 2


def test_a_model_that_came_after_the_start_is_found_by_load(
    folder: Repository, client: triton.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("late")
    assert caught.value.status() == "404" and "late" in caught.value.message()
    folder.add("late", onnx_models.plus(5))
    assert state(client, "late") is None, "nothing is loaded unasked"
    client.load_model("late")
    assert answer(client, "late") == 6


def test_loading_twice_and_unloading_twice_is_no_error(client: triton.InferenceServerClient) -> None:
    client.load_model("other")
    client.load_model("other")
    assert answer(client, "other") == 3
    client.unload_model("other")
    client.unload_model("other")
    client.load_model("other")
    assert answer(client, "other") == 3


def test_new_bytes_under_the_same_version_are_taken_over(
    server: Server, folder: Repository, client: triton.InferenceServerClient
) -> None:
    version = folder.add("swapped", onnx_models.plus(1), manifest=False)
    client.load_model("swapped")
    assert answer(client, "swapped") == 2
    changed = onnx_models.plus(7)
    (version / "model.onnx").write_bytes(changed)
    assert answer(client, "swapped") == 2, "nothing changes unasked"
    client.load_model("swapped")
    assert answer(client, "swapped") == 8
    assert server.version("swapped")["digest"] == sha256(changed)


def test_requests_under_way_survive_reloads(server: Server, folder: Repository) -> None:
    """New bytes come in while clients ask: everybody is answered, by the one or by the other."""
    version = folder.add("busy", onnx_models.plus(0), manifest=False)
    assert server.load("busy").status == 200
    reloads = 40
    stop = threading.Event()
    found: list[Answer] = []

    def ask() -> None:
        while not stop.is_set():
            found.append(server.infer("busy", json_input("x", "FP32", X)))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, reloads + 1):
        (version / "model.onnx").write_bytes(onnx_models.plus(number))
        assert server.load("busy").status == 200
    stop.set()
    for thread in threads:
        thread.join()
    refused = [answer for answer in found if answer.status != 200]
    assert not refused, f"{len(refused)} of {len(found)} were refused: {refused[0]}"
    answers = {float(answer.outputs()["y"][0]) for answer in found}
    assert len(answers) > 1, "the test must have asked while it changed"
    assert answers <= {1.0 + number for number in range(reloads + 1)}


def test_an_unknown_model_cannot_be_let_go(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("nobody")
    assert caught.value.status() == "404" and "nobody" in caught.value.message()


@pytest.mark.parametrize("name", ["..", "../../outside", ".hidden", "a/b", "a%00b"])
def test_a_name_leads_nowhere_but_to_a_folder_of_the_repository(server: Server, name: str) -> None:
    found = server.post(f"/v2/repository/models/{name.replace('/', '%2F')}/load", {})
    assert found.status in (400, 404), found
    assert found.error


def test_uploaded_files_and_configs_are_refused_and_nothing_changes(
    server: Server, client: triton.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("plus", config='{"max_batch_size": 8}')
    assert caught.value.status() == "501"
    found = server.post(
        "/v2/repository/models/plus/load",
        {"parameters": {"config": "{}", "file:1/model.onnx": base64_text(onnx_models.plus(9))}},
    )
    assert found.status == 501 and "file:" in found.error
    assert answer(client, "plus") == 2


@pytest.mark.parametrize(("body", "says"), [("[]", "object"), ("{", "JSON"), ("nonsense", "JSON")])
@pytest.mark.parametrize("action", ["load", "unload"])
def test_a_bad_control_body_is_refused_and_nothing_changes(server: Server, action: str, body: str, says: str) -> None:
    found = server.ask("POST", f"/v2/repository/models/plus/{action}", body)
    assert found.status == 400 and says in found.error
    assert server.get("/v2/models/plus/ready").status == 200


def test_a_named_repository_is_not_served(server: Server) -> None:
    for path in ("/v2/repository/mine/index", "/v2/repository/mine/models/plus/load"):
        found = server.post(path, {})
        assert found.status == 501, found
        assert "repository" in found.error


def test_control_can_be_switched_off(start: Callable[..., Server], folder: Repository, tmp_path: Path) -> None:
    server = start(folder.path, {"repository": {"control": False}}).wait_started()
    for action in (server.load, server.unload):
        found = action("plus")
        assert found.status == 403, found
        assert "repository.control" in found.error
    assert server.get("/v2/models/plus/ready").status == 200
    assert server.index()["plus", "1"]["state"] == "READY", "looking is allowed"


def test_all_versions_of_a_model_are_let_go_together(toys: Server) -> None:
    """On the shared server: whatever happens here must be undone."""
    try:
        assert toys.unload("versions").status == 200
        for version in (1, 2, 10):
            assert toys.get(f"/v2/models/versions/versions/{version}/ready").status == 503
            assert toys.version("versions", version)["state"] == "unloaded"
    finally:
        assert toys.load("versions").status == 200
    for version in (1, 2, 10):
        assert toys.get(f"/v2/models/versions/versions/{version}/ready").status == 200
