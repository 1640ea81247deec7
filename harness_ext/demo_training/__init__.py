"""Scripts that made the embedded model and measure recipes on it; not in the wheel."""
