"""The board in PostgreSQL, for teams: written there from a database file, and read from there into a local copy."""
