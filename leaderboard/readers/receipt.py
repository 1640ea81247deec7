"""`receipt.json`, format 1: what was asked, what was done to which matrix, and how it ended.

The schema is checked (wrong types are a reason, not a traceback); keys it does not know are ignored, so that a later
writer
may add some. A later *format* is refused.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leaderboard.errors import Unreadable
from leaderboard.readers.records import Calibration, Matrix
from leaderboard.readers.safe_json import canonical, clean, finite, load_json

FORMAT = 1
Whole = Annotated[int, Field(ge=-(2**62), le=2**62)]  # fits the store's columns


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Failure(_Part):
    """Why a run has no result."""

    kind: str
    reason: str
    where: str | None = None


class Model(_Part):
    """The model before the recipe."""

    name: str
    backend: str | None = None
    pretrained: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    model_type: str | None = None
    identity: str | None = None
    parameters: Whole | None = None


class Recipe(_Part):
    """What was done to it."""

    name: str
    label: str
    summary: str | None = None
    source: str | None = None
    control: str | None = None
    control_of: str | None = None
    resolved: Any = None


class Weights(_Part):
    """SHA-256 of all weights, before and after."""

    digest_before: str | None = None
    digest_after: str | None = None


class MatrixPart(_Part):
    """One edited matrix."""

    name: str
    step: Whole | None = None
    method: str | None = None
    part: str | None = None
    role: str | None = None
    layer: Whole | None = None
    shape: list[Whole] = Field(default_factory=list)
    rank_before: Whole | None = None
    rank_after: Whole | None = None
    energy_kept: float | None = None
    relative_error: float | None = None
    digest_before: str | None = None
    digest_after: str | None = None
    seconds: float | None = None
    bias_shift: bool | None = None
    parameters_before: Whole | None = None
    parameters_after: Whole | None = None
    fallback: str | None = None
    stored: str | None = None
    decomposition: str | None = None
    excess_error: float | None = None


class CalibrationPart(_Part):
    """One use of calibration documents; `documents` are lm-eval's doc hashes."""

    step: Whole | None = None
    task: str | None = None
    split: str | None = None
    samples: Whole | None = None
    seed: Whole | None = None
    documents: list[str] = Field(default_factory=list)


class Totals(_Part):
    """Sizes of the whole model."""

    parameters_before: Whole | None = None
    parameters_after: Whole | None = None


class Receipt(_Part):
    """The whole file."""

    format: Whole
    status: Literal["complete", "failed"]
    failure: Failure | None = None
    spec_id: str
    settings_id: str | None = None
    variant_id: str | None = None
    recipe_id: str | None = None
    command: list[str] = Field(default_factory=list)
    started: str | None = None
    finished: str | None = None
    seconds: dict[str, Any] = Field(default_factory=dict)
    model: Model
    recipe: Recipe
    weights: Weights = Field(default_factory=Weights)
    matrices: list[MatrixPart] = Field(default_factory=list)
    totals: Totals | None = None
    calibration: list[CalibrationPart] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    seeds: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)


def read_receipt(path: Path) -> tuple[Receipt, dict[str, Any]]:
    """The checked receipt, and the raw object for the parts that are only shown. Raises `Unreadable`."""
    data = load_json(path)
    if not isinstance(data, dict):
        raise Unreadable(f"{path.name} is not a receipt (not a JSON object)")
    found = data.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise Unreadable(f"{path.name} has format {found}, this version reads up to {FORMAT}: upgrade lm-eval-recipes")
    try:
        receipt = Receipt.model_validate(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        raise Unreadable(clean(f"{path.name} is not a receipt of format {FORMAT}: " + "; ".join(problems))) from error
    if receipt.status == "failed" and receipt.failure is None:
        raise Unreadable(f"{path.name} says failed, but not why")
    return receipt, data


def matrix_rows(receipt: Receipt) -> list[Matrix]:
    """The receipt's matrices as records: text storable, numbers finite or None."""
    rows = []
    for part in receipt.matrices:
        values = part.model_dump(exclude={"shape"})
        tidy: dict[str, Any] = {key: clean(value) if isinstance(value, str) else value for key, value in values.items()}
        tidy |= {key: finite(values[key]) for key in ("energy_kept", "relative_error", "excess_error", "seconds")}
        rows.append(Matrix(**tidy, shape=" x ".join(map(str, part.shape)) or None))
    return rows


def calibration_rows(receipt: Receipt) -> list[Calibration]:
    """The receipt's calibration uses as records."""
    return [
        Calibration(
            part.step, _text(part.task), _text(part.split), part.samples, part.seed, tuple(map(clean, part.documents))
        )
        for part in receipt.calibration
    ]


def utc(text: str | None) -> datetime | None:
    """An ISO 8601 time as naive UTC; None where it is none."""
    try:
        moment = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment


def shown(value: Any) -> str | None:
    """Part of the raw receipt as text for the page; None when it is empty."""
    return canonical(value) if value else None


def _text(value: str | None) -> str | None:
    return None if value is None else clean(value)
