"""Detection and instance segmentation protocols."""
