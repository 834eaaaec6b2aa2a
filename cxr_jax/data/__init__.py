"""From films on disk to batches: readers, preprocessing, augmentation, zones, sources, pipeline."""
