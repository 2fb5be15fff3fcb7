"""The ARM processors that are emulated: what qemu calls each, and its /proc/cpuinfo.

qemu-user shows a program the host's /proc/cpuinfo, and the runtimes choose their kernels by it (or
end: onnxruntime does not import). So each processor has a folder of its own for qemu's -L, with
links to the one root and with the file that the real processor would show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_V80 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = _V80.replace("cpuid", "atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs")
_V90 = (
    f"{_V82} jscvt fcma sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm dcpodp sve2 "
    "svei8mm svebf16 i8mm bf16 dgh bti"
)
_CORES = 2


@dataclass(frozen=True)
class Processor:
    """An ARM core.

    Attributes:
        name: as qemu's -cpu has it.
        part, variant, revision: of /proc/cpuinfo.
        features: the same; they decide which kernels run.
        product: the widest instruction for int8 products that it has.
    """

    name: str
    part: int
    variant: int
    revision: int
    features: str
    product: str


PROCESSORS = (
    Processor("cortex-a53", 0xD03, 0, 4, _V80, "smlal"),
    Processor("neoverse-n1", 0xD0C, 4, 1, _V82, "sdot"),
    Processor("cortex-a710", 0xD47, 2, 0, _V90, "smmla"),
)


def make_prefix(processor: Processor, root: Path, folder: Path) -> Path:
    """A folder for qemu's -L: the arm64 ``root`` as ``processor`` would show it."""
    prefix = folder / processor.name
    (prefix / "proc").mkdir(parents=True, exist_ok=True)
    for name in ("bin", "etc", "lib", "usr"):
        link = prefix / name
        if not link.is_symlink():
            link.symlink_to(root.resolve() / name)
    write_cpuinfo(processor, prefix / "proc/cpuinfo")
    return prefix


def make_android_root(processor: Processor, folder: Path) -> None:
    """The files of Linux by which XNNPACK counts and names the cores."""
    cores = folder / "sys/devices/system/cpu"
    for place in (folder / "proc", cores):
        place.mkdir(parents=True, exist_ok=True)
    write_cpuinfo(processor, folder / "proc/cpuinfo")
    for name in ("possible", "present"):
        (cores / name).write_text(f"0-{_CORES - 1}\n")


def write_cpuinfo(processor: Processor, path: Path) -> None:
    """What Linux on ``processor`` says of its cores."""
    cores = [
        f"processor\t: {core}\n"
        "BogoMIPS\t: 48.00\n"
        f"Features\t: {processor.features}\n"
        "CPU implementer\t: 0x41\n"
        "CPU architecture: 8\n"
        f"CPU variant\t: {processor.variant:#x}\n"
        f"CPU part\t: {processor.part:#x}\n"
        f"CPU revision\t: {processor.revision}\n"
        for core in range(_CORES)
    ]
    path.write_text("\n".join(cores))
