"""A loaded model or a checkpoint: where its matrices lie, and reading, replacing and restoring them."""
