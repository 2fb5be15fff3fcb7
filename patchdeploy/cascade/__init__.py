"""Cascades over a task's resolutions: integer confidence scores, the rule, its search, its test."""

from patchdeploy.cascade.certify import Certificate, certify_path, smallest_tolerance
from patchdeploy.cascade.rule import Cascade, CascadeRule, Stage, route
from patchdeploy.cascade.scores import SCORE_KINDS, confidence
from patchdeploy.cascade.search import Answers, greedy_cascade, search_path

__all__ = [
    "SCORE_KINDS",
    "Answers",
    "Cascade",
    "CascadeRule",
    "Certificate",
    "Stage",
    "certify_path",
    "confidence",
    "greedy_cascade",
    "route",
    "search_path",
    "smallest_tolerance",
]
