"""Checkpoints of other projects: their formats, files, import and export."""
