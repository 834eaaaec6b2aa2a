"""Metrics: rows of a whole split in, numbers with intervals out. Nothing is averaged over batches.

`segmentation`, `lesion_hits`, `explanations` and `box_matches` make rows on the device, one an
example, and `lesion_maps` on the host; `regression`, `classification`, `severity`, `detection` and
again `lesion_maps` turn the rows of a split into numbers on the host; `bootstrap` adds intervals.
NaN means "undefined here" and becomes null in `results.json`.
"""
