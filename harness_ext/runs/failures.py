"""What fails one variant, and not the whole command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError, VariantFailed

if TYPE_CHECKING:
    from harness_ext.lm_eval_adapter.backend import RecipeLM


@contextmanager
def failures_of_machine(lm: RecipeLM | None = None) -> Iterator[None]:
    """Running out of memory fails one variant, not the command; unless the model is cut over ranks, where the others
    wait for the piece of this one.
    """
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        told = (
            f"{str(error).splitlines()[0] if str(error) else 'out of memory'}; a smaller --batch_size or"
            " calibration.batch_size may fit"
        )
        raise (UserError(told) if lm is not None and lm.is_cut else VariantFailed("out_of_memory", told)) from None


def require_finite_results(results: Mapping[str, Any] | None) -> None:
    """A NaN among the answers' log-likelihoods makes every score of the run worthless. None: the first rank looks."""
    for task, samples in (results or {"samples": {}})["samples"].items():
        broken = sum(1 for sample in samples if _has_nan(sample["filtered_resps"]))
        if broken:
            raise VariantFailed(
                "non_finite_result",
                f"{broken} of {len(samples)} samples of {task} have a log-likelihood that is not a number",
                task,
            )


def _has_nan(value: Any) -> bool:
    if isinstance(value, float):
        return value != value
    return isinstance(value, Sequence) and not isinstance(value, str) and any(_has_nan(item) for item in value)
