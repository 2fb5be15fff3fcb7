"""Whether Kotlin says what Python says: patches, models, cascades, images, slot tables,
stores.

In: the jar that `make android` builds. Out: what was compared, and the closing line "N passed, N
failed"; exit status 1 where they differ. Every difference is printed with the seed that makes it.

    python tests/android/compare.py [--patches 1000] [--others 300] [--seed 1] [--seconds 5]
        [--bundle FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]

import case_folders  # noqa: E402, F401  (adds the folders of the cases)
import numpy as np  # noqa: E402
from bundle_cases import make_bundle  # noqa: E402
from cascade_cases import IMAGES, make_rule, with_cascade  # noqa: E402
from compare_pictures import compare_frames, compare_images  # noqa: E402
from compare_stores import compare_stores, kotlin_asker  # noqa: E402
from comparison import Comparison, say  # noqa: E402
from graph_cases import GRAPH_CASES  # noqa: E402
from jvm import Patchkit, policy_fields  # noqa: E402
from patch_cases import PatchCase, Rng, random_cases  # noqa: E402
from score_cases import MOST_LSB, both_scores  # noqa: E402
from store_at_once import compare_at_once  # noqa: E402

from patchdeploy.bundle import Bundle, open_bundle  # noqa: E402
from patchdeploy.bundle.manifest import Manifest  # noqa: E402
from patchdeploy.cascade import SCORE_KINDS, Cascade, CascadeRule, Stage, confidence  # noqa: E402
from patchdeploy.cascade.rule import route  # noqa: E402
from patchdeploy.errors import (  # noqa: E402
    FileFormatError,
    IntegrityError,
    PatchRefusedError,
    SlotTableError,
)
from patchdeploy.patchfile import Policy  # noqa: E402
from patchdeploy.patchfile.pack import open_patch  # noqa: E402
from patchdeploy.runtime import Engine  # noqa: E402
from patchdeploy.runtime.self_test import score_codes  # noqa: E402
from patchdeploy.slots import PatchValues, SlotTable  # noqa: E402

FIELDS = ("weight_scale", "bias", "activation_scale", "activation_zero_point", "weights")


def main(arguments: list[str]) -> int:
    """Compare all; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--others", type=int, default=300, help="scores, images, slot tables")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5, help="how long processes share a store")
    parser.add_argument("--bundle", type=Path, help="a bundle whose models are compared, too")
    options = parser.parse_args(arguments)
    comparison = Comparison()
    logging.disable(logging.WARNING)  # of unsigned files and damaged stores: they are the cases
    with Patchkit() as kotlin, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        codes = compare_patches(comparison, kotlin, folder, options.patches, options.seed)
        compare_bundles(comparison, kotlin, folder, options.bundle)
        compare_cascade(comparison, kotlin, folder)
        compare_manifests(comparison, kotlin, folder, options.others, options.seed)
        compare_scores(comparison, kotlin, options.others, options.seed)
        compare_images(comparison, kotlin, options.others, options.seed)
        compare_frames(comparison, kotlin, options.others, options.seed)
        compare_tables(comparison, kotlin, folder, options.others, options.seed)
        compare_stores(comparison, kotlin, folder, options.others, options.seed)
        at_once = compare_at_once(comparison, kotlin_asker(folder), options.seconds)
    say(f"codes of the patches: {', '.join(f'{code} {n}' for code, n in codes.most_common())}")
    say(f"operations at once on a store: {', '.join(f'{case} {n}' for case, n in at_once.items())}")
    for kind, count in comparison.passed.items():
        say(f"{kind}: {count} equal, {comparison.failed[kind]} not")
    say(f"{comparison.passed.total()} passed, {comparison.failed.total()} failed")
    return 1 if comparison.failed else 0


# -- patches ---------------------------------------------------------------------------------------


def compare_patches(
    comparison: Comparison, kotlin: Patchkit, folder: Path, count: int, seed: int
) -> Counter[str]:
    """The verdict on each file, and what comes of it; how often each code came."""
    codes: Counter[str] = Counter()
    for number, case in enumerate(random_cases(count, seed)):
        table = folder / case.table.sha256
        if not table.exists():
            table.write_bytes(case.table.encoded)
        expected = verdict(case)
        codes[expected["code"]] += 1
        found = kotlin.ask("patch", case.data, table=str(table), policy=policy_fields(case.policy))
        comparison.check("patches", f"number {number} of seed {seed}", expected, found)
    return codes


def verdict(case: PatchCase) -> dict[str, Any]:
    """What Python says about a file, in the form of Kotlin's answer."""
    try:
        _, patch = open_patch(case.data, case.policy, case.table)
    except PatchRefusedError as error:
        return {"code": error.code}
    golden = patch.golden
    return {
        "code": "ok",
        "labels": list(patch.classes),
        "values": {str(px): values_hash(one) for px, one in patch.values.items()},
        "golden": None if golden is None else [len(golden.thumbnails), golden.tolerance_lsb],
        "cascade": None if patch.cascade is None else cascade_fields(patch.cascade),
    }


def values_hash(values: PatchValues) -> str:
    """SHA-256 of the text of each array's SHA-256."""
    arrays = [getattr(values, name) for name in FIELDS]
    texts = [
        hashlib.sha256(one.astype(one.dtype.newbyteorder("<")).tobytes()).hexdigest()
        for one in arrays
    ]
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def cascade_fields(cascade: Cascade) -> dict[str, Any]:
    """A cascade in the form of Kotlin's answer."""
    rule, certificate = cascade.rule, cascade.certificate
    return {
        "score": rule.score,
        "stages": [[one.resolution, one.threshold, one.ratio] for one in rule.stages],
        "reference": certificate.reference,
        "tolerance_millionths": round(certificate.tolerance * 1e6),
        "confidence_millionths": round(certificate.confidence * 1e6),
        "images": certificate.images,
        "certified": certificate.certified,
    }


# -- models ----------------------------------------------------------------------------------------


def compare_bundles(
    comparison: Comparison, kotlin: Patchkit, folder: Path, given: Path | None
) -> None:
    """The base with each task, resolution and format laid over it: the header's result hash."""
    bundles = [make_bundle(folder / name, name, signed=True) for name in GRAPH_CASES]
    if given is not None:
        bundles.append(open_bundle(given))
    for bundle in bundles:
        compare_bundle(comparison, kotlin, bundle)
        for runtime in ("litert", "onnxruntime"):
            same = compare_runtime(comparison, kotlin, bundle, runtime, seed=1)
            shown = f"{same['equal']} of {same['all']} scores the same bits"
            say(f"{runtime} on {bundle.path.name}: {shown}")


def compare_bundle(comparison: Comparison, kotlin: Patchkit, bundle: Bundle) -> None:
    """One bundle."""
    manifest = bundle.manifest
    policy = policy_fields(Policy(manifest.trusted, allow_unsigned=manifest.trusted is None))
    for task, entry in manifest.tasks.items():
        for name, converter in manifest.converters.items():
            answer = kotlin.ask(
                "overlay",
                bundle.read(entry.file),
                base=str(bundle.path / converter.file),
                slots=str(bundle.path / converter.slots),
                table=str(bundle.path / manifest.coding),
                policy=policy,
            )
            signed = bundle.header(task).results[name]
            for px in entry.resolutions:
                case = f"{bundle.path.name}, {task} at {px} px, {name}"
                found = answer.get("found", {}).get(str(px), answer)
                comparison.check("models", case, signed[px], found)


def compare_runtime(
    comparison: Comparison, kotlin: Patchkit, bundle: Bundle, runtime: str, seed: int
) -> Counter[str]:
    """The Engines' scores: within `MOST_LSB`; how many are the same bits."""
    same: Counter[str] = Counter()
    for case, ours, theirs, worst in both_scores(kotlin, bundle, runtime, seed):
        comparison.check(f"scores of {runtime}", f"{case}, LSB", True, worst <= MOST_LSB[runtime])
        same["equal"] += int((ours.view(np.int32) == theirs.view(np.int32)).sum())
        same["all"] += ours.size
    return same


def compare_cascade(comparison: Comparison, kotlin: Patchkit, folder: Path) -> None:
    """Where a cascade of each kind answers: what Python's rule says of the scores that Kotlin's
    runtime gives, and (onnxruntime, whose scores are the same bits) what Python's Engine says."""
    for kind in SCORE_KINDS:
        made = make_bundle(folder / kind, "branches", signed=True)
        bundle = with_cascade(made, "first", make_rule(made, kind), 2)
        for runtime in MOST_LSB:
            fields: dict[str, Any] = {"bundle": str(bundle.path), "runtime": runtime, "threads": 1}
            fields |= {"task": "first", "width": IMAGES.shape[2], "height": IMAGES.shape[1]}
            with Engine.open(bundle, runtime) as engine:
                cascade = engine.cascade("first")
                assert cascade is not None
                first, last = cascade.rule.stages
                alone = kotlin.ask("engine", IMAGES.tobytes(), px=first.resolution, **fields)
                scores = np.array([bits for _, bits in alone["found"]], np.int32).view(np.float32)
                codes = score_codes(scores, *engine.patch_values("first", first.resolution))
                is_sure = confidence(kind, codes, first.ratio) >= first.threshold
                expected = np.where(is_sure, first.resolution, last.resolution).tolist()
                answers = engine.classify(list(IMAGES), "first", cascade=True)
            answer = kotlin.ask("engine", IMAGES.tobytes(), **fields)
            found = [px for px, _ in answer.get("found", [])] or answer
            comparison.check(f"cascades of {runtime}", kind, expected, found)
            if runtime == "onnxruntime":
                ours = [one.resolution for one in answers]
                comparison.check(f"cascades of {runtime}", f"{kind}, Engines", ours, found)


def compare_manifests(
    comparison: Comparison, kotlin: Patchkit, folder: Path, count: int, seed: int
) -> None:
    """Mutated manifests, each with its own hash made right: what is read, or that it is refused."""
    rng = np.random.default_rng(seed)
    manifest = make_bundle(folder / "manifest", "branches", signed=True).path / "manifest.json"
    document = json.loads(manifest.read_bytes())
    for number in range(count):
        data = mutated_manifest(rng, document) if number else manifest.read_bytes()
        answer = kotlin.ask("manifest", data)
        expected = manifest_fields(data)
        found = answer if answer.get("code") == "ok" else {"code": REFUSED.get(answer["code"])}
        comparison.check("manifests", f"{number} of seed {seed}: {data[:2000]!r}", expected, found)


REFUSED = {"FileFormatException": "format", "IntegrityException": "integrity"}


def mutated_manifest(rng: Rng, document: Any) -> bytes:
    """One or two values of the manifest changed, and now and then a byte of its text."""
    changed = json.loads(json.dumps(document))
    for _ in range(int(rng.integers(1, 3))):
        mutate_value(rng, changed)
    changed.pop("manifest_sha256", None)
    text = json.dumps(changed, sort_keys=True, indent=2, ensure_ascii=False)
    digest = hashlib.sha256(text.encode() + b"\n").hexdigest()
    data = bytearray(
        json.dumps(
            {**changed, "manifest_sha256": digest}, sort_keys=True, indent=2, ensure_ascii=False
        ).encode()
        + b"\n"
    )
    if rng.random() < 0.1:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(7))
    return bytes(data)


def mutate_value(rng: Rng, value: Any) -> None:
    """Walk down at random; there set, remove, double or add a value."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if not isinstance(value[key], dict | list) or rng.random() < 0.2:
            break
        value = value[key]
    match rng.integers(4):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[f"{key}x"] = value[key]
        case 2 if isinstance(value, list):
            value.append(value[key])
        case _:
            value[key] = [0, -1, 1, 2**31, 2**53, 0.5, True, None, "", "../x", ".x", [], {}][
                rng.integers(13)
            ]


def manifest_fields(data: bytes) -> dict[str, Any]:
    """What Python reads, in the form of Kotlin's answer."""
    try:
        found = Manifest.from_json(data)
    except IntegrityError:
        return {"code": "integrity"}
    except FileFormatError:
        return {"code": "format"}
    trusted = found.trusted
    return {
        "code": "ok",
        "tasks": {
            name: [one.file, list(one.classes), list(one.resolutions)]
            for name, one in found.tasks.items()
        },
        "files": {path: [one.sha256, one.bytes, one.ships] for path, one in found.files.items()},
        "converters": {name: [one.file, one.slots] for name, one in found.converters.items()},
        "base": [found.base_name, found.base_sha256, found.coding],
        "trusted": None if trusted is None else [k and k.hex() for k in trusted.keys],
        "resolutions": list(found.resolutions),
        "input_size": found.preprocessing.input_size,
    }


# -- cascades --------------------------------------------------------------------------------------


def compare_scores(comparison: Comparison, kotlin: Patchkit, count: int, seed: int) -> None:
    """Confidences of random codes, and the stages that answer."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = SCORE_KINDS[number % len(SCORE_KINDS)]
        classes = int(rng.choice([2, 3, 10, 1000, 65_536], p=[0.2, 0.2, 0.4, 0.19, 0.01]))
        codes = random_codes(rng, 20 if classes <= 1000 else 2, classes)
        ratio = int(rng.choice([1, 2**32 - 1, int(2 ** rng.uniform(0, 32)), int(3.9e9)]))
        fields = {"kind": kind, "classes": classes}
        answer = kotlin.ask("confidence", codes.tobytes(), ratio=ratio, **fields)
        expected = confidence(kind, codes, ratio)
        comparison.check("confidences", f"{number}", expected.tolist(), answer.get("confidence"))
        compare_route(comparison, kotlin, rng, fields, ratio, [codes, rng.permutation(codes)])


def compare_route(
    comparison: Comparison,
    kotlin: Patchkit,
    rng: Rng,
    fields: dict[str, Any],
    ratio: int,
    codes: list[Any],
) -> None:
    """The stage that answers each image, where two may be sure before the last."""
    kind = fields["kind"]
    by_side = dict(zip((16, 24), codes, strict=True))
    ratio = 0 if kind == "margin" else ratio
    sure = {px: confidence(kind, one, max(ratio, 1)) for px, one in by_side.items()}
    stages = [Stage(px, int(rng.choice(sure[px])), ratio) for px in by_side]
    rule = CascadeRule(kind, (*stages, Stage(64, 0, 0)))
    rows = [[one.resolution, one.threshold, one.ratio] for one in rule.stages]
    answer = kotlin.ask("route", b"".join(one.tobytes() for one in codes), stages=rows, **fields)
    comparison.check("decisions", str(rows), route(rule, sure).tolist(), answer.get("stages"))


def random_codes(rng: Rng, images: int, classes: int) -> Any:
    """int8 [images, classes]: all of one value, ends, peaks, noise."""
    spread = rng.choice([0, 1, 10, 60, 300], images)[:, None]
    noise = rng.normal(rng.uniform(-128, 127, images)[:, None], spread, (images, classes))
    return np.clip(np.rint(noise), -128, 127).astype(np.int8)


# -- slot tables -----------------------------------------------------------------------------------


def compare_tables(
    comparison: Comparison, kotlin: Patchkit, folder: Path, count: int, seed: int
) -> None:
    """Whether a mutated slot table is taken."""
    rng = np.random.default_rng(seed)
    bundle = open_bundle(folder / "conv_stack")
    texts = [bundle.read(one.slots) for one in bundle.manifest.converters.values()]
    for number in range(count):
        data = mutated_table(rng, json.loads(texts[number % len(texts)]))
        try:
            SlotTable.from_json(data)
            expected = "ok"
        except SlotTableError:
            expected = "SlotTableException"
        found = kotlin.ask("slots", data)["code"]
        comparison.check("slot tables", f"{number} of seed {seed}", expected, found)


ODD_VALUES = (
    *(None, True, 0, 1, -1, 4, 16, 24, 2**31 - 1, 2**31, 2**53, 1.0, "", "f32", "u8", "i64", []),
    *([1, 1, 1, 1], [0, 2, 3, 4], {}, "weight", "bias", "bias_scale", "ohwi", "x" * 5000),
)


def mutated_table(rng: Rng, document: dict[str, Any]) -> bytes:
    """One value of a table, a slot or a view replaced, taken away or doubled."""
    kind = int(rng.integers(5))
    odd = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    slots = document["slots"]
    if kind == 0:
        document[rng.choice([*document, "other"])] = odd
    elif kind == 1:
        slots[rng.integers(len(slots))][rng.integers(11)] = odd
    elif kind == 2:
        place = rng.integers(len(slots))
        slots[place : place + 1] = [slots[place]] * int(rng.integers(3))
    elif kind == 3 and document["views"]:
        view = document["views"][rng.choice([*document["views"]])]
        view[rng.integers(len(view))][rng.integers(2)] = odd
    else:
        slots[rng.integers(len(slots))][3] += int(rng.integers(-8, 9))
    return json.dumps(document).encode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
