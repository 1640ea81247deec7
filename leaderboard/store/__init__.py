"""The DuckDB file: schema, locking, writing, and the questions asked of it."""
