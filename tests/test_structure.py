"""The shape of the source: imports point backward along the flow, nothing heavy at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import patchdeploy
from patchdeploy import errors

ROOT = Path(__file__).resolve().parent.parent
FLOW = (
    "errors",
    "storage",
    "documents",
    "flatbuffer",
    "task_names",
    "data",
    "base",
    "patch",
    "patched_model",
    "named",
    "graph",
    "fold",
    "floatnet",
    "lower",
    "slots",
    "slot_plan",
    "quantize",
    "reference",
    "coding",
    "measure",
    "training",
    "convert",
    "converters",
    "cascade",
    "patchfile",
    "store",
    "bundle",
    "runtime",
    "export",
    "verify",
    "evaluate",
    "fit_cascade",
    "report",
    "demo",
    "cli",
    "__main__",
)


def stage_of(module: str) -> str | None:
    """The stage of a dotted module name; None for other packages."""
    parts = module.split(".")
    if parts[0].startswith("patchdeploy_"):
        return "converters"
    if parts[0] != "patchdeploy" or len(parts) == 1:
        return None
    return next((stage for stage in FLOW if _belongs(parts[1], stage)), parts[1])


def _belongs(module: str, stage: str) -> bool:
    return module == stage or module.startswith(f"{stage}_")


def source_files() -> list[Path]:
    return sorted((ROOT / "patchdeploy").rglob("*.py")) + sorted(
        (ROOT / "converters").rglob("*.py")
    )


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "converters":
        parts = parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def imported_modules(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_or_earlier_stages(path):
    own = stage_of(module_name(path))
    if own is None:  # patchdeploy/__init__.py gathers the public names
        return
    assert own in FLOW, f"{path} belongs to no stage: add {own!r} to the flow"
    for module in imported_modules(path):
        stage = stage_of(module)
        if stage is not None:
            assert FLOW.index(stage) <= FLOW.index(own), f"{path} imports {module}, a later stage"


def test_importing_the_package_loads_no_library():
    program = (
        "import sys, patchdeploy\n"
        "heavy = {'numpy', 'PIL', 'torch', 'tensorflow', 'onnx', 'onnxruntime', 'ai_edge_litert'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_public_names_are_sorted_and_all_there():
    assert list(patchdeploy.__all__) == sorted(patchdeploy.__all__)
    for name in patchdeploy.__all__:
        assert getattr(patchdeploy, name) is not None


def test_every_error_is_in_the_tree_at_the_top_of_its_module_and_has_one_root():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    for kind in classes:
        assert issubclass(kind, errors.PatchdeployError)
        assert kind.__name__ in errors.__doc__
