"""Everything that touches lm-evaluation-harness: its backend, its tasks and its private names."""
