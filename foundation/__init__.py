"""What every room stands on: errors, atomic files, seeds, cores, strict models, one registry."""
