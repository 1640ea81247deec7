"""Several processes of one command on one machine: which of them this is, messages between them, and one end for all.

A process of the launcher (`accelerate launch`, `torchrun`) is a rank. Messages are JSON, or tensors as safetensors
writes them: nothing is unpickled.
"""
