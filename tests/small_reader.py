"""The smallest reader of patches: from a signed file and a base file to the model that may run.

docs/integrate.md quotes it step by step. Plain Python: it shares no line with the package. The
payload is `slow_decoder`'s; an Ed25519 verifier is the caller's. It keeps no store and runs no
model. What breaks a rule raises `Refused` with the code of docs/patch-format.md.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable

from slow_decoder import Decoded, Refused, Table, Values, decode, read_table, single

LARGEST_FILE = 8_454_420
CONTEXT = b"patchdeploy patch file, version 1\0"
HEX = re.compile("[0-9a-f]{64}")
NAME = re.compile("[a-z0-9_-]{1,64}")
ENGINE = 2

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, message) -> whether it is RFC 8032's; without the cofactor."""


# step 1: the container
def read_container(file: bytes) -> tuple[bytes, list[tuple[int, bytes]], bytes]:
    """(header, [(key index, signature)], payload)"""
    if len(file) > LARGEST_FILE:
        raise Refused("too_large")
    if len(file) < 16:
        raise Refused("truncated")
    magic, length, count, zero = struct.unpack("<8sIB3s", file[:16])
    if magic != b"PDPATCH1":
        raise Refused("magic")
    if not 2 <= length <= 65_536:
        raise Refused("header_length")
    if zero != bytes(3):
        raise Refused("reserved")
    if count > 4:
        raise Refused("signature_count")
    end = 16 + length + 65 * count
    if len(file) < end:
        raise Refused("truncated")
    places = range(16 + length, end, 65)
    signatures = [(file[at], file[at + 1 : at + 65]) for at in places]
    return file[16 : 16 + length], signatures, file[end:]


# step 2: who signed it
def check_signatures(file: bytes, policy: dict, verify: Verify) -> None:
    header, signatures, _ = read_container(file)
    if not signatures and not policy["allow_unsigned"]:
        raise Refused("unsigned")
    trusted, seen = policy["trusted"] or [], set()
    for index, signature in signatures:
        if index >= len(trusted) or trusted[index] is None:
            raise Refused("key_unknown")
        if index in seen:
            raise Refused("key_repeated")
        message = CONTEXT + file[:12] + header
        if not verify(bytes.fromhex(trusted[index]), signature, message):
            raise Refused("signature")
        seen.add(index)
    if signatures and len(seen) < policy["threshold"]:
        raise Refused("threshold")


# step 3: the header
def read_header(text: bytes) -> dict:
    try:
        decoded = text.decode("ascii")
        if not re.fullmatch(r"[ -\[\]-~]*", decoded) or re.search(r"\d{17}", decoded):
            raise Refused("header_text")
        if deepest(decoded) > 8:
            raise Refused("header_text")
        header = json.loads(decoded)
    except ValueError:
        raise Refused("header_text") from None
    again = json.dumps(header, sort_keys=True, separators=(",", ":"))
    if again.encode() != text or not all(map(is_plain, values_of(header))):
        raise Refused("header_text")
    if not isinstance(header, dict) or not has_fields(header):
        raise Refused("header_field")
    return header


def deepest(text: str) -> int:
    """Levels of objects and lists, brackets in strings left out."""
    level = most = 0
    for one in re.sub('"[^"]*"', "", text):
        level += (one in "[{") - (one in "]}")
        most = max(most, level)
    return most


def values_of(value):
    """Everything inside, itself as well."""
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from values_of(one)


def is_plain(value) -> bool:
    """No true, false, null, fraction or sign; integers to 2^53 - 1."""
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value < 2**53
    return isinstance(value, dict | list | str)


def has_fields(header: dict) -> bool:
    """Exactly the keys of the page's table, each of its type and range."""

    def number(value, low, high=2**53 - 1):
        return isinstance(value, int) and low <= value <= high

    def keyed(value, rules):
        return (
            isinstance(value, dict)
            and value.keys() == rules.keys()
            and all(rule(value[key]) for key, rule in rules.items())
        )

    def digest(value):
        return isinstance(value, str) and HEX.fullmatch(value) is not None

    def runs(sites):
        end = -1
        for run in sites if isinstance(sites, list) else ():
            if not isinstance(run, list) or len(run) != 2 or not number(run[1], 1):
                return False
            if not number(run[0], end + 1) or sum(run) >= 2**31:
                return False
            end = sum(run)
        return end >= 0

    def sides(values):
        good = isinstance(values, list) and 1 <= len(values) <= 16
        good = good and all(number(px, 1, 4096) for px in values)
        return good and len(set(values)) == len(values) and sum(px * px for px in values) <= 2**24

    def results(value):
        good = isinstance(value, dict) and 1 <= len(value) <= 8
        good = good and all(NAME.fullmatch(name) and len(name) <= 32 for name in value)
        wanted = {str(px): digest for px in header["resolutions"]}
        return good and all(keyed(one, wanted) for one in value.values())

    rules = {
        "base": lambda value: keyed(value, {"bytes": lambda n: number(n, 1), "sha256": digest}),
        "classes": lambda n: number(n, 2, 65_536),
        "encoding": lambda value: value in ("parts-1", "parts-2"),
        "engine": lambda n: number(n, 2 if header["encoding"] == "parts-2" else 1, 2**31 - 1),
        "expires": lambda n: number(n, 0),
        "format": lambda n: n == 1,
        "payload": lambda value: keyed(
            value, {"bytes": lambda n: number(n, 1, 8_388_608), "sha256": digest}
        ),
        "resolutions": sides,
        "results": results,
        "sequence": lambda n: number(n, 1),
        "sites": runs,
        "task": lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None,
    }
    return keyed(header, rules)


# step 4: whether it is for this app, and for now
def check_policy(header: dict, payload: bytes, policy: dict) -> None:
    if len(payload) != header["payload"]["bytes"]:
        raise Refused("length")
    if hashlib.sha256(payload).hexdigest() != header["payload"]["sha256"]:
        raise Refused("payload_hash")
    here = {name: policy.get(name) for name in ("runtime", "task", "base_sha256", "base_bytes")}
    if here["runtime"] is not None and here["runtime"] not in header["results"]:
        raise Refused("runtime")
    if header["engine"] > policy.get("engine", ENGINE):
        raise Refused("engine")
    for name in ("sha256", "bytes"):
        if here[f"base_{name}"] not in (None, header["base"][name]):
            raise Refused("base")
    if here["task"] not in (None, header["task"]):
        raise Refused("task")
    sides = policy.get("resolutions")
    if sides is not None and not set(header["resolutions"]) <= set(sides):
        raise Refused("resolution")
    if header["sequence"] < policy.get("floor", 0):
        raise Refused("sequence")
    now = policy.get("now")  # None: an app without a clock
    if header["expires"] and now is not None and now >= header["expires"]:
        raise Refused("expired")


# step 5: the values (slow_decoder.py, from "Payload" of the page)
def open_patch(file: bytes, policy: dict, verify: Verify, table: Table) -> tuple[dict, Decoded]:
    text, _, payload = read_container(file)
    check_signatures(file, policy, verify)
    header = read_header(text)
    check_policy(header, payload, policy)
    return header, decode(payload, header, table)


# step 6: the overlay
PERMUTED = {"ohwi": (0, 1, 2, 3), "1hwo": (3, 1, 2, 0), "oihw": (0, 3, 1, 2)}
LETTERS = {"f32": "f", "i32": "i", "i64": "q", "i8": "b", "u8": "B"}


def lay_over(base: bytes, slots: dict, values: Values, px: int) -> bytes:
    """The model of one resolution: the base file with that resolution's values in its slots."""
    if hashlib.sha256(base).hexdigest() != slots["base_sha256"]:
        raise Refused("result")
    if slots["resolutions"] and px not in slots["resolutions"]:
        raise Refused("result")
    model = bytearray(base)
    for row in slots["slots"]:
        slot = dict(zip(slots["slot_fields"], row, strict=True))
        if slot["resolution"] in (None, px):
            numbers = slot_numbers(slot, values)
            data = struct.pack(f"<{len(numbers)}{LETTERS[slot['dtype']]}", *numbers)
            model[slot["offset_bytes"] : slot["offset_bytes"] + len(data)] = data
    return bytes(model)


def slot_numbers(slot: dict, values: Values) -> list:
    run = slice(slot["start"], slot["start"] + slot["count"])
    if slot["kind"] == "bias_scale":
        x_scale = values.activation_scale[slot["x_index"]]
        return [single(x_scale * scale) for scale in values.weight_scale[run]]
    if slot["kind"] not in ("weight", "activation_zero_point"):
        return getattr(values, slot["kind"])[run]
    numbers = values.weights[run] if slot["kind"] == "weight" else None
    numbers = values.activation_zero_point[run] if numbers is None else permute(numbers, slot)
    return [number + 128 for number in numbers] if slot["dtype"] == "u8" else numbers


def permute(numbers: list[int], slot: dict) -> list[int]:
    """[O, kh, kw, I] in another order of axes, row-major."""
    shape, axes = slot["shape"], PERMUTED[slot["layout"]]
    steps = [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1]
    places = [0]
    for axis in axes:
        places = [at + k * steps[axis] for at in places for k in range(shape[axis])]
    return [numbers[at] for at in places]


# step 7: whether it is what its maker signed
def make_model(file, policy, verify, table: bytes, base: bytes, slots: dict, px: int) -> bytes:
    """The bytes for the runtime, whose hash the maker signed."""
    header, patch = open_patch(file, policy, verify, read_table(table))
    model = lay_over(base, slots, patch.values[px], px)
    if hashlib.sha256(model).hexdigest() != header["results"][slots["runtime"]][str(px)]:
        raise Refused("result")
    return model
