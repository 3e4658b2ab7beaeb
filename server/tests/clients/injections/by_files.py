"""Models that change, vanish, come and go beneath a server that serves."""

from __future__ import annotations

import json
import shutil
import threading

from harness import write_manifest
from injections.scene import Scene, kind


def _flip(scene: Scene, content: bytes) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(content)
    changed[scene.dice.randrange(len(changed))] ^= 1 << scene.dice.randrange(8)
    return bytes(changed)


@kind()
def corrupt_model(scene: Scene) -> None:
    """one bit of a model's file is turned, and it is loaded again: refused, what serves goes on"""
    model = scene.model()
    file = scene.version(model) / "model.onnx"
    right = file.read_bytes()
    file.write_bytes(_flip(scene, right))
    for _ in range(scene.dice.randint(1, 3)):
        answer = scene.server.load(model)
        assert answer.status == 400, answer
    scene.linger(0.0, 1.0)
    file.write_bytes(right)
    assert scene.server.load(model).status == 200


@kind()
def truncated_model(scene: Scene) -> None:
    """a model's file ends too early, with a manifest that agrees: refused by the runtime, what serves goes on"""
    model = scene.model()
    file = scene.version(model) / "model.onnx"
    right = file.read_bytes()
    file.write_bytes(right[: scene.dice.randrange(1, len(right))])
    write_manifest(scene.version(model))
    answer = scene.server.load(model)
    assert answer.status == 400, answer
    scene.linger(0.0, 1.0)
    file.write_bytes(right)
    write_manifest(scene.version(model))
    assert scene.server.load(model).status == 200


@kind()
def wrong_version(scene: Scene) -> None:
    """a newer version whose golden answers are not what it gives: it never serves"""
    model = scene.model()
    newer = scene.newer(model)
    golden = json.loads((newer / "golden.json").read_text())
    probabilities = golden["cases"][0]["outputs"][-1]["data"]
    probabilities[0] += 0.5
    (newer / "golden.json").write_text(json.dumps(golden))
    write_manifest(newer)
    answer = scene.server.load(model)
    assert answer.status == 400, answer
    scene.linger(0.0, 1.0)
    shutil.rmtree(newer)


@kind()
def new_version(scene: Scene) -> None:
    """a newer version takes over and is taken back, under load"""
    model = scene.model()
    newer = scene.newer(model)
    assert scene.server.load(model).status == 200
    scene.linger(0.0, 1.0)
    shutil.rmtree(newer)
    assert scene.server.load(model).status == 200


@kind()
def vanished_files(scene: Scene) -> None:
    """every file of a model is removed, and comes back"""
    model = scene.model()
    aside = scene.folder / "aside"
    shutil.move(scene.models / model, aside)
    if scene.dice.random() < 0.5:
        answer = scene.server.load(model)
        assert answer.status in (400, 404), answer
    scene.linger(0.0, 2.0)
    shutil.move(aside, scene.models / model)
    assert scene.server.load(model).status == 200


@kind()
def unload_load(scene: Scene) -> None:
    """a model is unloaded and loaded again, some times"""
    for _ in range(scene.dice.randint(1, 5)):
        model = scene.model()
        assert scene.server.unload(model).status == 200
        scene.linger(0.0, 0.5)
        assert scene.server.load(model).status == 200


@kind()
def storm_of_loads(scene: Scene) -> None:
    """all models are loaded again and again by many at once, more than may"""
    statuses: set[int] = set()
    times = scene.dice.randint(1, 3)

    def load(model: str) -> None:
        for _ in range(times):
            statuses.add(scene.server.load(model).status)

    models = [scene.model() for _ in range(scene.dice.randint(8, 20))]
    threads = [threading.Thread(target=load, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses <= {200, 503}, statuses
