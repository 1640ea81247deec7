"""`python -m harness_ext ...` is the same command as the `lm_eval` script of this package."""

from __future__ import annotations

from harness_ext.cli import main

if __name__ == "__main__":
    main()
