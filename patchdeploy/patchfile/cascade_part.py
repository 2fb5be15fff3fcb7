"""The optional part of a payload that holds a cascade; its bytes are in docs/patch-format.md.

In: a `Cascade` and the resolutions of the header. Out: bytes, and back a checked `Cascade`.

    u8      version, 1
    u8      score: 0 margin, 1 probability, 2 entropy
    u8      1 where the certificate holds, else 0
    u8      M, the number of stages, 1 to 16
    u8      position of the reference among the header's resolutions
    3       zero
    u32     tolerance in millionths, 1 to 999,999
    u32     confidence in millionths, 500,000 to 999,999
    u32     images that the test saw; at least 1 where the certificate holds
    9 M     for each stage: u8 position of its resolution, u32 threshold, u32 ratio
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from patchdeploy.cascade import SCORE_KINDS, Cascade, CascadeRule, Certificate, Stage
from patchdeploy.errors import ConfigError, PatchRefusedError
from patchdeploy.patchfile.parts import refuse

VERSION = 1
MAX_STAGES = 16
_HEAD = struct.Struct("<BBBBB3xIII")
_STAGE = struct.Struct("<BII")
MAX_BYTES = _HEAD.size + MAX_STAGES * _STAGE.size
MILLION = 1_000_000


def cascade_bytes(cascade: Cascade, resolutions: Sequence[int]) -> bytes:
    """The part's content.

    Args:
        resolutions: sides in pixels, in the order of the header.

    Raises:
        ConfigError: the cascade names a resolution that the patch does not hold, has a tolerance
            or confidence that millionths cannot say, or is one that `read_cascade` refuses.
    """
    rule, certificate = cascade.rule, cascade.certificate
    for px in (*rule.resolutions, certificate.reference):
        if px not in resolutions:
            raise ConfigError(
                f"a cascade names {px} px; the patch holds "
                f"{', '.join(map(str, sorted(resolutions)))} px; fit the cascade over these"
            )
    places = {px: place for place, px in enumerate(resolutions)}
    if len(rule.stages) > MAX_STAGES or not 0 <= certificate.images < 2**32:
        raise ConfigError(
            f"a cascade of {len(rule.stages)} stages, certified on {certificate.images} images; a "
            f"patch file holds at most {MAX_STAGES} stages and {2**32 - 1} images; fit it again"
        )
    head = _HEAD.pack(
        VERSION,
        SCORE_KINDS.index(rule.score),
        certificate.certified,
        len(rule.stages),
        places[certificate.reference],
        _millionths("tolerance", certificate.tolerance, 1),
        _millionths("confidence", certificate.confidence, MILLION // 2),
        certificate.images,
    )
    stages = [_STAGE.pack(places[one.resolution], one.threshold, one.ratio) for one in rule.stages]
    content = head + b"".join(stages)
    try:
        read_cascade(content, resolutions)
    except PatchRefusedError as error:
        raise ConfigError(f"a cascade that no reader takes: {error}; fit it again") from error
    return content


def _millionths(name: str, share: float, least: int) -> int:
    found = round(share * MILLION)
    if not least <= found < MILLION:
        raise ConfigError(
            f"{name} {share}; a patch file says it in millionths, from {least} to {MILLION - 1}; "
            "round it"
        )
    return found


def read_cascade(content: bytes, resolutions: Sequence[int]) -> Cascade:
    """The cascade in ``content``.

    Args:
        resolutions: sides in pixels, in the order of the header.

    Raises:
        PatchRefusedError: code "parts": a field outside its range.
    """
    if len(content) < _HEAD.size:
        raise refuse("parts", "cascade length", f"at least {_HEAD.size} bytes", len(content))
    version, score, certified, count, reference, tolerance, confidence, images = _HEAD.unpack_from(
        content
    )
    _check("version", version, VERSION, VERSION)
    _check("score", score, 0, len(SCORE_KINDS) - 1)
    _check("certified", certified, 0, 1)
    _check("stages", count, 1, MAX_STAGES)
    _check("reference", reference, 0, len(resolutions) - 1)
    _check("reserved bytes", int.from_bytes(content[5:8], "little"), 0, 0)
    _check("tolerance", tolerance, 1, MILLION - 1)
    _check("confidence", confidence, MILLION // 2, MILLION - 1)
    _check("images", images, certified, 2**32 - 1)
    _check("length", len(content), *[_HEAD.size + count * _STAGE.size] * 2)
    stages = []
    for place, threshold, ratio in _STAGE.iter_unpack(content[_HEAD.size :]):
        _check("resolution", place, 0, len(resolutions) - 1)
        stages.append(Stage(resolutions[place], threshold, ratio))
    try:
        rule = CascadeRule(SCORE_KINDS[score], tuple(stages))
    except ConfigError as error:
        raise refuse("parts", "cascade stages", "those of a rule", error) from error
    certificate = Certificate(
        resolutions[reference], tolerance / MILLION, confidence / MILLION, images, bool(certified)
    )
    return Cascade(rule, certificate)


def _check(field: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        rule = f"{least}" if least == most else f"{least} to {most}"
        raise refuse("parts", f"cascade {field}", rule, found)
