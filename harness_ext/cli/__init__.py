"""The command line: lm_eval's own commands plus ours."""

from __future__ import annotations


def main() -> None:
    """Run the command given by `sys.argv`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
