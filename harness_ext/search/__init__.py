"""Searches: which matrices, and which ranks; one family a file."""
