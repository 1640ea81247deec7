"""The embedded model: a small trained Llama that shows the effect of recipes without a network."""

from __future__ import annotations

from pathlib import Path


def demo_path() -> Path:
    """Folder of the shipped model: config, safetensors, tokenizer, model card."""
    return Path(__file__).resolve().parent / "model"
