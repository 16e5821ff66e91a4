"""Recipes: one YAML file for each image set and method."""
