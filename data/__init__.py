"""Image sets, the embedded default set and batched augmentation."""
