"""The board in a terminal: how numbers and verdicts are written."""
