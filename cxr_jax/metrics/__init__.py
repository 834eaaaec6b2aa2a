"""Metrics: rows of a whole split in, numbers with intervals out. Nothing is averaged over batches.

`segmentation`, `lesion_hits`, `explanations` and `box_matches` make rows on the device, one an
example; `regression`, `classification`, `severity` and `detection` turn the rows of a split into
numbers on the host;
`bootstrap` adds intervals. NaN means "undefined here" and becomes null in `results.json`.
"""
