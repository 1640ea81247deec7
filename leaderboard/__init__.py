"""The leaderboard: from run directories to verdicts.

It reads what `lm_eval` wrote (run directories are the truth), keeps an index of it in one DuckDB file, compares every
recipe with its baseline by paired statistics, and shows the result in the terminal and on a local page.

Notable choices: nothing here imports torch, transformers, lm_eval or harness_ext, so a board can be browsed on a laptop
that could not run a model. Heavy imports (duckdb, pyarrow, scipy, streamlit) happen inside functions.
"""
