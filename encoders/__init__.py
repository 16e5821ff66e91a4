"""The pretrained backbone on disk: its networks, what deviates in them, other projects' checkpoints."""
