"""Quantisation: the base once, then activation parameters per task and resolution."""
