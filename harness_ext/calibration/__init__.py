"""Data that a recipe learns from: documents, statistics of them, and what is kept of these."""
