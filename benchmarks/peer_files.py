"""The peers' int8 files of a patched network, made once and kept.

In: a `Subject`, a patch, resolutions. Out: paths of .tflite and .onnx files that other exporters
wrote from the same weights and the same calibration images. Each runs in an environment of its
own (``make peers``); files are cached by the SHA-256 of everything that went into them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from subjects import Subject, Tensors

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from network import save_network

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"


@dataclass(frozen=True)
class Peer:
    """One exporter with its settings.

    Attributes:
        name: in tables and JSON.
        runtime: "litert" or "onnxruntime".
        environment: folder of .envs, or None for patchdeploy's own.
        script: in benchmarks/peers; ``arguments`` follow FOLDER and OUTPUT.
    """

    name: str
    runtime: str
    environment: str | None
    script: str
    arguments: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        return ".tflite" if self.runtime == "litert" else ".onnx"

    @property
    def python(self) -> Path:
        if self.environment is None:
            return Path(sys.executable)
        return ROOT / ".envs" / self.environment / "bin" / "python"


PEER_LIST = (
    Peer("litert-torch", "litert", "litert-torch", "litert_torch_int8.py", ("--layout", "nhwc")),
    Peer(
        "litert-torch nchw", "litert", "litert-torch", "litert_torch_int8.py", ("--layout", "nchw")
    ),
    Peer("tensorflow", "litert", None, "tensorflow_int8.py"),
    Peer("ort qdq", "onnxruntime", None, "onnxruntime_int8.py", ("--format", "qdq")),
    Peer("ort qoperator", "onnxruntime", None, "onnxruntime_int8.py", ("--format", "qoperator")),
)


def peers_of(runtime: str) -> tuple[Peer, ...]:
    """The peers whose files ``runtime`` runs and whose environment is there; says what is not."""
    found = []
    for peer in PEER_LIST:
        if peer.runtime != runtime:
            continue
        if peer.python.exists():
            found.append(peer)
        else:
            print(f"peer {peer.name} left out: {peer.python} is not there; run: make peers")
    return tuple(found)


def export_peer(
    peer: Peer,
    subject: Subject,
    patch: Tensors,
    cache: Path,
    resolutions: Sequence[int] | None = None,
) -> Path:
    """``peer``'s int8 file of ``subject`` with ``patch``; made now unless it is in ``cache``.

    Several resolutions: one signature each, for the peer that can (litert-torch).
    """
    chosen = list(resolutions or [subject.px])
    digest = _digest(peer, subject, patch, chosen)
    output = (cache / f"{digest[:20]}{peer.suffix}").resolve()
    if output.exists():
        return output
    cache.mkdir(parents=True, exist_ok=True)
    folder = (cache / f"{digest[:20]}.network").resolve()
    save_network(
        folder,
        replace(subject.network, px=max(chosen)),
        {**subject.state, **patch},
        subject.images_at(max(chosen)),
    )
    print(f"{peer.name}: exporting {subject.name} at {chosen} px ...", flush=True)
    partial = output.with_suffix(f".partial{peer.suffix}")
    command = [str(peer.python), str(PEERS / peer.script), str(folder), str(partial)]
    command += [*peer.arguments, "--px", *map(str, chosen)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{peer.name} failed:\n{result.stdout[-500:]}\n{result.stderr[-2000:]}")
    partial.rename(output)
    return output


def _digest(peer: Peer, subject: Subject, patch: Tensors, resolutions: Sequence[int]) -> str:
    """SHA-256 over weights, images, settings, the peer's scripts and its pins."""
    digest = hashlib.sha256(repr((peer, subject.network, list(resolutions))).encode())
    state = {**subject.state, **patch}
    for key in sorted(state):
        digest.update(key.encode() + state[key].tobytes())
    digest.update(subject.images.tobytes())
    pins = [PEERS / f"{peer.environment}.txt"] if peer.environment else []
    for path in (PEERS / peer.script, PEERS / "network.py", *pins):
        digest.update(path.read_bytes())
    return digest.hexdigest()
