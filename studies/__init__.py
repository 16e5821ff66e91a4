"""Studies: one YAML file for each comparison."""
