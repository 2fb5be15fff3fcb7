"""How many parameters a family of networks has that share a base: the paper's Tables 4 and 5.

In: a base, what a patch owns, and how many classes each member (task or resolution) has. Out: a
`FamilyCount`, exact at full size without training. Why: what a patch is for is a total that grows
by a patch, not by a network, with each further member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from patchdeploy.base import Base
from patchdeploy.errors import PatchError
from patchdeploy.patch.variants import PatchConfig, count_parameters, find_sites


@dataclass(frozen=True)
class FamilyCount:
    """Counts of values; parameters are gamma and beta but not mu and var, as torch counts.

    Attributes:
        shared: parameters that every member uses as they are; a head that no member owns too.
        private: parameters of each member: its patch.
        separate: parameters of each member as a network of its own.
        shared_statistics: mu and var that every member uses.
        private_statistics: mu and var of one member's patch.
        separate_statistics: mu and var of one network of its own.
    """

    shared: int
    private: tuple[int, ...]
    separate: tuple[int, ...]
    shared_statistics: int
    private_statistics: int
    separate_statistics: int

    def together(self, statistics: bool = False) -> int:
        """All values of the family that shares; with mu and var where ``statistics``."""
        values = self.shared + sum(self.private)
        own = self.shared_statistics + len(self.private) * self.private_statistics
        return values + (own if statistics else 0)

    def separately(self, statistics: bool = False) -> int:
        """All values of as many networks that share nothing."""
        own = len(self.separate) * self.separate_statistics
        return sum(self.separate) + (own if statistics else 0)


def count_family(base: Base, config: PatchConfig, classes: Sequence[int]) -> FamilyCount:
    """The counts of one member for each of ``classes``, which share all but ``config``'s kinds.

    Layers that no forward pass reaches count with what is shared.

    Raises:
        PatchError: no member, or a shared head over members of different numbers of classes.
    """
    own_head = "head" in config.kinds
    if not classes or (not own_head and len(set(classes)) > 1):
        raise PatchError(
            f"members of {list(classes)} classes share all but {list(config.kinds)}; there must be "
            "at least 1 member, and those that share a head have as many classes; add the kind head"
        )
    counts = count_parameters(base, config, classes[0])
    heads = [count_parameters(base, PatchConfig(("head",)), n)["head"] for n in classes]
    head_of_base = sum(
        one.numel() for one in base.module.get_submodule(base.head_name).parameters()
    )
    trunk = counts["base"] - head_of_base
    layers = dict(base.module.named_modules())
    added = sum(2 * layers[path].out_channels for path in find_sites(base, config).explicit)
    private = counts["scale_bias"] + counts["depthwise"]
    all_statistics = _count_statistics(base)
    return FamilyCount(
        shared=trunk - (private - added) + (0 if own_head else heads[0]),
        private=tuple(private + (head if own_head else 0) for head in heads),
        separate=tuple(trunk + head for head in heads),
        shared_statistics=all_statistics - counts["statistics"],
        private_statistics=counts["statistics"],
        separate_statistics=all_statistics,
    )


def _count_statistics(base: Base) -> int:
    """mu and var of every normalisation."""
    layers = base.module.modules()
    return sum(2 * one.num_features for one in layers if isinstance(one, nn.BatchNorm2d))
