"""Two lists of trusted keys of one reader: what counts when one is older than the other.

In: lists that a reader pins, has seen before, or is given. Out: the list in which every key that
any of them revoked is revoked, so that an old copy of a list brings no key back.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from patchdeploy.errors import PatchKeyError
from patchdeploy.patchfile.container import Policy
from patchdeploy.patchfile.keys import TrustedKeys


def join_lists(known: TrustedKeys | None, other: TrustedKeys | None) -> TrustedKeys | None:
    """The keys of both, each revoked that either has revoked.

    The threshold is that of the list which has these keys already, the newer one; the higher one
    where both do, or neither.

    Raises:
        PatchKeyError: they have different keys at one index, so that neither came of the other; or
            the threshold is above the keys that are left.
    """
    if known is None or other is None:
        return known or other
    unset = object()
    keys: list[bytes | None] = []
    for index, pair in enumerate(zip_longest(known.keys, other.keys, fillvalue=unset)):
        there = {one for one in pair if one is not unset}
        live = there - {None}
        if len(live) > 1:
            raise PatchKeyError(
                f"two lists of trusted keys have different keys at index {index}: "
                f"{', '.join(sorted(one.hex() for one in live if isinstance(one, bytes)))}; one "
                "list must come of the other by keys rotate; pass a list that does, or have the "
                "store forget the list that it has seen: patchdeploy reset --keys"
            )
        keys.append(None if None in there else next(one for one in live if isinstance(one, bytes)))
    newest = [one.threshold for one in (known, other) if list(one.keys) == keys]
    return TrustedKeys(tuple(keys), max(newest or [known.threshold, other.threshold]))


def still_count(signers: Sequence[int], policy: Policy) -> bool:
    """Whether signatures by these key indices, valid when they were made, are enough today."""
    if not signers:
        return policy.allow_unsigned
    if policy.trusted is None or len(set(signers)) < policy.trusted.threshold:
        return False
    keys = policy.trusted.keys
    return all(index < len(keys) and keys[index] is not None for index in signers)
