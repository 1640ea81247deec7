"""Many runs on many machines: cells of a sweep, each one ordinary `lm_eval run` in a process of its own."""
