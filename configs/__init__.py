"""Recipes: one file each, `get_config(preset)`."""
