"""One task's tensors as a few flat rows, so that tasks stack into tables with one call each.

In: a base and what a patch owns. Out: a `RowLayout`, which turns tensors by state-dict name into
rows and rows into views by state-dict name. MobileNetV2's patch is 208 tensors of 52
normalisations, sixteen of them 3,328; as rows it is four and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.patch import PatchConfig, PatchSites, find_sites

Rows = dict[str, Tensor]
HEAD = "head."


@dataclass(frozen=True)
class Piece:
    """Where a tensor lies: ``row[start : start + values]``, in ``shape``."""

    row: str
    start: int
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Number of values."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class RowLayout:
    """How the tensors of one patch lie in rows; the same for every task with the same sites.

    The rows, float32: ``scale`` and ``bias`` [S], of all normalisations and then of all explicit
    convolutions; ``mean`` and ``var`` [M], of the normalisations; ``kernels`` [1, K], of depthwise
    convolutions (two dimensions, because weight decay acts on kernels and not on vectors); and
    the last layer's ``head.weight`` and ``head.bias``.

    Attributes:
        sites: where the patch attaches.
        head_name: module path of the last layer.
        pieces: by state-dict name, without the head.
        widths: channels of the normalisations, then of the explicit convolutions.
        epsilon: float32 [M], of the normalisations.
    """

    sites: PatchSites
    head_name: str
    pieces: Mapping[str, Piece]
    widths: tuple[int, ...]
    epsilon: Tensor

    @property
    def normalised(self) -> int:
        """M, the channels with statistics."""
        return len(self.epsilon)

    def split_kernels(self, rows: Rows) -> tuple[Tensor, ...]:
        """The depthwise kernels of one task by site, in one call, so that their gradients come
        back in one."""
        pieces = [self.pieces[f"{path}.weight"] for path in self.sites.depthwise]
        if not pieces:
            return ()
        flat = torch.split(rows["kernels"][0], [piece.values for piece in pieces])
        return tuple(one.reshape(piece.shape) for one, piece in zip(flat, pieces, strict=True))

    def pack(self, tensors: Mapping[str, Tensor]) -> Rows:
        """Copies of ``tensors`` (by state-dict name) as rows; a name that is missing is 0."""
        lengths: dict[str, int] = {}
        for piece in self.pieces.values():
            lengths[piece.row] = max(lengths.get(piece.row, 0), piece.start + piece.values)
        rows = {row: torch.zeros(length) for row, length in lengths.items()}
        for key, piece in self.pieces.items():
            if key in tensors:
                end = piece.start + piece.values
                rows[piece.row][piece.start : end] = tensors[key].detach().cpu().reshape(-1)
        if "kernels" in rows:
            rows["kernels"] = rows["kernels"].reshape(1, -1)
        head = {
            key: value for key, value in tensors.items() if key.startswith(f"{self.head_name}.")
        }
        for key, value in head.items():
            rows[HEAD + key.rpartition(".")[2]] = value.detach().cpu().clone()
        return rows

    def views(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By state-dict name, over the memory of ``rows``; writing into them writes the rows."""
        flat = {row: value.detach().reshape(-1) for row, value in rows.items()}
        named = {
            key: flat[piece.row][piece.start : piece.start + piece.values].reshape(piece.shape)
            for key, piece in self.pieces.items()
        }
        for row, value in rows.items():
            if row.startswith(HEAD):
                named[f"{self.head_name}.{row.removeprefix(HEAD)}"] = value.detach()
        return named


def plan_rows(base: Base, config: PatchConfig) -> RowLayout:
    """The layout of every patch over ``base`` with the sites of ``config``.

    Raises:
        UnknownLayerError: a pattern of ``config`` selects nothing.
    """
    sites = find_sites(base, config)
    modules = dict(base.module.named_modules())
    pieces: dict[str, Piece] = {}
    widths: list[int] = []
    epsilon: list[Tensor] = []
    start = 0
    for path in sites.norms:
        norm = modules[path]
        assert isinstance(norm, torch.nn.BatchNorm2d)
        shape = (norm.num_features,)
        for name, row in NORM_ROWS.items():
            pieces[f"{path}.{name}"] = Piece(row, start, shape)
        epsilon.append(torch.full(shape, norm.eps))
        widths.append(norm.num_features)
        start += norm.num_features
    for path in sites.explicit:
        channels = modules[path].out_channels
        assert isinstance(channels, int)
        for name, row in (("patch_scale", "scale"), ("patch_bias", "bias")):
            pieces[f"{path}.{name}"] = Piece(row, start, (channels,))
        widths.append(channels)
        start += channels
    start = 0
    for path in sites.depthwise:
        weight = modules[path].weight
        assert isinstance(weight, Tensor)
        pieces[f"{path}.weight"] = Piece("kernels", start, tuple(weight.shape))
        start += weight.numel()
    return RowLayout(
        sites,
        base.head_name,
        pieces,
        tuple(widths),
        torch.cat(epsilon) if epsilon else torch.empty(0),
    )


NORM_ROWS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
