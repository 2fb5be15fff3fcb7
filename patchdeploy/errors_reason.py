"""Why another library failed, in words that fit into a message of ours.

In: any exception. Out: one line without colour codes, whole sentences alone, and none of the advice
that libraries give for their own users (torch's way of switching its safety off, for instance).
"""

from __future__ import annotations

import re

MOST_CHARACTERS = 160
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(`])|\n")
_ADVICE = re.compile(
    r"weights.only|safe_globals|if you trust|do those steps|please |report this|github\.com|"
    r"https?://",
    re.IGNORECASE,
)


def describe_reason(error: BaseException) -> str:
    """The error's type, and the sentences of its message up to the first that is advice.

    Control characters become spaces. Sentences are left out whole where the line would become
    longer than `MOST_CHARACTERS`.
    """
    kind = type(error).__name__
    said = ""
    for sentence in _SENTENCE_END.split(_COLOUR.sub("", str(error))):
        words = " ".join("".join(c if c.isprintable() else " " for c in sentence).split())
        if _ADVICE.search(words) or len(said) + len(words) >= MOST_CHARACTERS:
            break
        said = f"{said} {words}".strip()
    return f"{kind}: {said.rstrip('.')}" if said else kind
