"""One command from its arguments to finished run directories."""
