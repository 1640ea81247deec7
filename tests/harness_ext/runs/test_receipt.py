"""The written receipt: its keys and types, and that only what fits the schema is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness_ext.errors import VariantFailed
from harness_ext.runs.receipt import mark_failed
from leaderboard.readers.receipt import FORMAT, Receipt, ReceiptTotals, read_receipt

# A key and its type a line, as receipts of format 1 have always had them: readers elsewhere rely on it.
TYPES = """
format int
status str
failure NoneType
spec_id str
settings_id str
recipe_id str
command[] str
speed[].batch float
speed[].calls int
speed[].length float
speed[].phase str
speed[].tokens_per_second float
started str
model.backend str
model.name str
model.pretrained str
model.revision str
model.dtype str
model.device str
model.model_type str
model.identity str
model.parameters int
model.model_args dict
recipe.name str
recipe.label str
recipe.summary str
recipe.source str
recipe.control NoneType
recipe.control_of NoneType
recipe.resolved dict
warnings[] str
seeds.python int
seeds.numpy int
seeds.torch int
seeds.fewshot int
settings dict
tasks dict
versions dict
ran_on.host str
ran_on.gpus list
ran_on.driver NoneType
ran_on.ranks int
ran_on.engine str
ran_on.engine_version str
ran_on.sweep NoneType
ran_on.cell NoneType
weights.digest_before str
weights.digest_after str
weights.digest str
totals.parameters_before int
totals.parameters_after int
totals.bytes_before int
totals.bytes_after int
totals.flops_per_token_before int
totals.flops_per_token_after int
totals.matrices_edited int
totals.tokens_per_second_before float
totals.generated_tokens_per_second_before NoneType
totals.tokens_per_second_after float
totals.generated_tokens_per_second_after NoneType
variant_id str
matrices[].step int
matrices[].method str
matrices[].name str
matrices[].part NoneType
matrices[].role str
matrices[].layer int
matrices[].shape[] int
matrices[].rank_before int
matrices[].rank_after int
matrices[].energy_kept float
matrices[].relative_error float
matrices[].digest_before str
matrices[].digest_after str
matrices[].seconds float
matrices[].bias_shift bool
matrices[].parameters_before int
matrices[].parameters_after int
matrices[].fallback NoneType
matrices[].decomposition str
matrices[].excess_error float
matrices[].stored str
matrices[].rank_asked int
calibration[].step int
calibration[].task str
calibration[].split str
calibration[].samples int
calibration[].seed int
calibration[].shuffled_labels bool
calibration[].left_out_because_scored int
calibration[].documents[] str
calibration[].contents[] str
calibration[].wordings[] str
statistics[].step int
statistics[].name str
statistics[].sinks str
statistics[].rule str
statistics[].tokens int
statistics[].sink_tokens[] int
log list
searches list
calibration_loss[].step int
calibration_loss[].method str
calibration_loss[].documents int
calibration_loss[].before float
calibration_loss[].after float
calibration_loss[].tasks[].task str
calibration_loss[].tasks[].documents int
calibration_loss[].tasks[].before float
calibration_loss[].tasks[].after float
finished str
seconds.load float
seconds.evaluate float
seconds.calibrate float
seconds.edit float
files[].name str
files[].bytes int
files[].sha256 str
"""
OPEN = {"model.model_args", "recipe.resolved", "settings", "tasks", "versions"}
"""Objects whose keys depend on what was asked."""


def types(value: Any, place: str = "") -> dict[str, str]:
    """The type of every value by its place; of lists that of the first item."""
    if isinstance(value, dict) and place not in OPEN:
        return {
            inner: kind
            for key, item in value.items()
            for inner, kind in types(item, f"{place}.{key}".strip(".")).items()
        }
    if isinstance(value, list) and value:
        return types(value[0], f"{place}[]")
    return {place: type(value).__name__}


@pytest.mark.slow
def test_a_receipt_has_the_keys_and_types_of_format_1(demo_run, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "asvd", limit=40)
    assert ran.code == 0, ran.err
    (path,) = tmp_path.glob("results/demo/asvd*/receipt.json")
    written = json.loads(path.read_text())
    assert types(written) == dict(line.split(" ") for line in TYPES.split("\n") if line)
    receipt, raw = read_receipt(path)
    assert raw == written and receipt.to_json() == written


def receipt() -> Receipt:
    """A receipt before anything is done to the model."""
    return Receipt(
        format=FORMAT,
        status="complete",
        failure=None,
        spec_id="s",
        model={"name": "tiny"},
        recipe={"name": "svd", "label": "svd"},
        settings={"function": len, "shots": None},
    )


def test_a_failed_variant_says_why_and_has_no_totals() -> None:
    failed = receipt()
    error = VariantFailed("not_converged", "no decomposition", "layers.0.up.weight")
    error.searches = [{"step": 0, "trials": []}]
    mark_failed(failed, error)
    written = failed.to_json()
    assert written["status"] == "failed" and "totals" not in written and "matrices" not in written
    assert written["failure"] == {"kind": "not_converged", "reason": "no decomposition", "where": "layers.0.up.weight"}
    assert written["searches"] == error.searches


def test_what_json_lacks_is_written_as_text() -> None:
    assert receipt().to_json()["settings"] == {"function": str(len), "shots": None}


def test_only_what_fits_the_schema_is_written() -> None:
    filled = receipt()
    with pytest.raises(ValidationError, match="status"):
        filled.status = "unheard of"  # type: ignore[assignment]
    with pytest.raises(ValidationError, match="parameters_befor\n"):
        ReceiptTotals.model_validate({"parameters_befor": 1})
    with pytest.raises(ValidationError, match="tokens_per_second_after"):
        ReceiptTotals.model_validate({"tokens_per_second_after": "fast"})
