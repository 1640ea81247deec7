"""The reference beside every recipe of the embedded model: fine-tuning on the very documents that recipes calibrate on.

Notable choices. All weights are trained by AdamW at one fixed rate, without decay; every step sees all documents at
once, so nothing but the documents is drawn. The loss is the one that calibration measures: the mean over documents of
the cross-entropy of the answer. The rate is the one of `RATES` that after 30 steps answers most of other facts of the
training split, which a test repeats; no scored document had a say.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness_ext.calibration.documents import LabelledDocument
    from harness_ext.lm_eval_adapter.backend import RecipeLM

RECORD = "fine_tuning.json"
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class FineTuning:
    """What decides the fine-tuned weights, besides the documents."""

    steps: int
    learning_rate: float = 1e-4
    weight_decay: float = 0.0


def fine_tune(settings: FineTuning, documents: Sequence[LabelledDocument], folder: Path) -> float:
    """Write the fine-tuned embedded model into `folder`, unless it is there already. Returns the seconds that the
    training took.

    The folder is written beside its place and renamed, so that one that is there is whole.
    """
    asked = {**asdict(settings), "documents": [document.doc_hash for document in documents]}
    known = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
    if {key: known.get(key) for key in asked} == asked:
        return known["seconds"]
    from harness_ext.lm_eval_adapter.backend import RecipeLM

    lm = RecipeLM("demo", device="cpu")
    seconds = train(lm, settings, documents)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    lm.model.save_pretrained(temporary)
    lm.tokenizer.save_pretrained(temporary)
    (temporary / RECORD).write_text(json.dumps({**asked, "seconds": round(seconds, 3)}) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return round(seconds, 3)


def train(lm: RecipeLM, settings: FineTuning, documents: Sequence[LabelledDocument]) -> float:
    """Train the loaded model in place. Returns the seconds that it took."""
    import torch

    from harness_ext.calibration.batches import batches_of, summed_loss

    optimizer = torch.optim.AdamW(lm.model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    batches = list(batches_of(lm, documents, len(documents)))
    started = time.perf_counter()
    for _ in range(settings.steps):
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            (summed_loss(lm, batch) / len(documents)).backward()
        optimizer.step()
    return time.perf_counter() - started
