"""The board of a model: cells, order, history, layers, and the same across models."""
