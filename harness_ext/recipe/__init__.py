"""Recipes: the schema of a step, parsing, and changes on the command line."""
