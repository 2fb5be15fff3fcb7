"""What of a patch is coded, and how coarsely: whole numbers of steps away from the base.

In: a quantised base, a task's slot values. Out: codes, and back. `layout` (where the head lies),
`table` (what patches are coded against; `make_table` makes it), `grid` (the frozen formulas),
`decode`, `encode`, `lossless_steps`, `probe` and `choose_steps` (how coarsely a patch is coded).
Training rounds on the same grid as the file, so this comes before both.
"""
