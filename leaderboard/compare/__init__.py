"""Two runs: whether they may be compared, and what their samples say."""
