"""Decompositions of matrices, exact and randomised, each made once and kept on disk."""
