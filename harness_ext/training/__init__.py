"""Training the factors of matrices (basis selection)."""
