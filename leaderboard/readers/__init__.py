"""From files that anybody may have written to plain records of runs."""
