"""An arm64 Debian with this project's packages, and a qemu that runs it; made once in a folder.

In: an empty or half-filled folder. Out: ``root`` (Debian 12's Python 3.11), ``site`` (aarch64
wheels of the versions in constraints.txt), ``qemu-aarch64`` (Debian 13's, static: Debian 12's has
no core with smmla), and `Arm`, which runs programs. Packages are unpacked and never set up: no
script of theirs runs.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from processors import Processor, make_prefix

REPOSITORY = Path(__file__).resolve().parents[2]
MIRROR = "http://deb.debian.org/debian"
WHEELS = (
    "ai-edge-litert",
    "cryptography",
    "flatbuffers",
    "hypothesis",
    "numpy",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime",
    "pillow",
    "pytest",
    "rich",
    "safetensors",
    "typer",
)
QUIETLY = ("nice", "-n", "5")
"""Before a command that takes long."""
FORGOTTEN = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables of the host that name its own processor."""


def say(line: str) -> None:
    """Print ``line`` at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def missing() -> str | None:
    """What this machine lacks to make the folder, in words; None where nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"it needs x86-64 Linux, and this is {platform.machine()} {platform.system()}"
    if not Path("/etc/debian_version").exists():
        return "it needs Debian (its packages, keys and apt); run it in a container of debian:12"
    if os.geteuid() != 0:
        return "it needs root, to unpack Debian's packages; run it in a container"
    if shutil.which("mmdebstrap") is None:
        return "it needs mmdebstrap: apt-get install mmdebstrap"
    if not (REPOSITORY / ".venv/bin/uv").exists():
        return "it needs the environment of the tests: make arm makes it"
    return None


@dataclass(frozen=True)
class Arm:
    """An emulated processor.

    Attributes:
        processor: which.
        folder: where `prepare` has put everything.
        prefix: its view of the root.
    """

    processor: Processor
    folder: Path
    prefix: Path

    def command(self, *arguments: object, options: tuple[str, ...] = ()) -> list[str]:
        """Python with ``arguments``, under qemu with ``options``."""
        variables = {
            "OMP_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join(map(str, source_path(self.folder))),
        }
        flags = [flag for name, value in variables.items() for flag in ("-E", f"{name}={value}")]
        flags += [flag for name in FORGOTTEN for flag in ("-U", name)]
        python = self.folder / "root/usr/bin/python3.11"
        qemu = [self.folder / "qemu-aarch64", "-cpu", self.processor.name, "-L", self.prefix]
        return [str(one) for one in (*qemu, *options, *flags, python, "-B", *arguments)]

    def run(self, *arguments: object) -> str:
        """What Python with ``arguments`` prints.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(
            [*QUIETLY, *self.command(*arguments)], cwd=REPOSITORY, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.processor.name}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout


def source_path(folder: Path) -> list[Path]:
    """Where Python finds this tree before the wheels."""
    return [REPOSITORY, REPOSITORY / "converters", REPOSITORY / "tests", folder / "site"]


def prepare(folder: Path) -> None:
    """Make what ``folder`` does not hold yet; a part is moved to its place when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "root").exists():
        say("unpacking Debian 12 for arm64")
        _unpack(folder / "root", "bookworm", "arm64", "python3,libstdc++6,libgomp1")
    if not (folder / "qemu-aarch64").exists():
        say("unpacking qemu-user of Debian 13")
        _unpack(folder / "host", "trixie", "amd64", "qemu-user")
        shutil.copy(folder / "host/usr/bin/qemu-aarch64", folder / "qemu-aarch64")
        shutil.rmtree(folder / "host")
    if not (folder / "site").exists():
        say("installing aarch64 wheels")
        _install(folder / "site")


def emulate(processor: Processor, folder: Path) -> Arm:
    """``processor``, over a folder that `prepare` has made."""
    prefix = make_prefix(processor, folder / "root", folder / "prefixes")
    return Arm(processor, folder.resolve(), prefix.resolve())


def device() -> str:
    """This machine, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def versions(folder: Path) -> Mapping[str, str]:
    """Of the emulator."""
    said = subprocess.run([folder / "qemu-aarch64", "--version"], capture_output=True, text=True)
    return {"qemu": said.stdout.split("\n")[0].removeprefix("qemu-aarch64 version ")}


def _unpack(place: Path, suite: str, architecture: str, packages: str) -> None:
    new = place.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract"]
    command += [f"--architectures={architecture}", f"--include={packages}", suite, str(new), MIRROR]
    subprocess.run(command, check=True)
    new.rename(place)


def _install(place: Path) -> None:
    new = place.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    target = ["--target", str(new), "--python-platform", "aarch64-manylinux_2_31"]
    target += ["--python-version", "3.11", "--quiet"]
    uv = [str(REPOSITORY / ".venv/bin/uv"), "pip", "install", *target]
    constraints = ["--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([*uv, "--only-binary", ":all:", *constraints, *WHEELS], check=True)
    # Its metadata alone is used, for the converters' entry points: the tree is found first.
    subprocess.run([*uv, "--no-deps", str(REPOSITORY)], check=True)
    new.rename(place)
