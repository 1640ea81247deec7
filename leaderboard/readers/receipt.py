"""The schema of `receipt.json`, format 1: what was asked, what was done to which matrix, and how it ended.

`harness_ext` fills these models and writes `Receipt.to_json`; the leaderboard reads them. Writing is strict: an unknown
key or a wrong type raises `ValidationError`. Reading is lenient, because the file may be anybody's: unknown keys are
skipped, and so are parts of the wrong type that the leaderboard does not use (`Unread`). A later *format* is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticUseDefault, to_jsonable_python

from leaderboard.errors import Unreadable
from leaderboard.readers.safe_json import canonical, clean, finite, load_json
from leaderboard.readers.secrets import redacted_command, without_secrets

FORMAT = 1
LONGEST_NAME, MOST_GPUS = 200, 1024
DENSE, FACTORS = "dense", "factors"
_READING = {"reading": True}
_WITH_SETTINGS = ("model", "settings", "failure", "warnings")


def _use_default_when_reading(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    try:
        return handler(value)
    except ValidationError:
        if info.context is _READING:
            raise PydanticUseDefault from None
        raise


Whole = Annotated[int, Field(ge=-(2**62), le=2**62)]  # fits the store's columns
Plain = Annotated[Any, PlainSerializer(lambda value: to_jsonable_python(value, fallback=str), when_used="json")]
_Value = TypeVar("_Value")
_Part = TypeVar("_Part", bound="ReceiptPart")
Unread = Annotated[_Value, WrapValidator(_use_default_when_reading)]
"""A part that the leaderboard does not use: on reading, a wrong type leaves it at its default."""


class ReceiptPart(BaseModel):
    """A part of the receipt. Immutable; unknown keys are an error, except in a file that is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _skip_unknown_keys(cls, data: Any, info: ValidationInfo) -> Any:
        if info.context is _READING and isinstance(data, dict):
            return {key: value for key, value in data.items() if key in cls.model_fields}
        return data

    def to_json(self) -> dict[str, Any]:
        """What is written: plain data of the fields that were set, None among them."""
        return self.model_dump(mode="json", exclude_unset=True)


class ReceiptFailure(ReceiptPart):
    """Why a run has no result. kind: a word for the class of failure; where: the matrix or task."""

    kind: str
    reason: str
    where: str | None = None


class ReceiptModel(ReceiptPart):
    """The model before the recipe. identity: a hash of the checkpoint's files; parameters: a count. dequantized_from:
    how its checkpoint is quantised, where it was loaded as plain weights.
    """

    backend: str | None = None
    name: str
    pretrained: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    model_type: str | None = None
    identity: str | None = None
    parameters: Whole | None = None
    model_args: Unread[dict[str, Plain] | None] = None
    dequantized_from: str | None = None


class ReceiptRecipe(ReceiptPart):
    """The recipe. resolved: the recipe with every default written out; control: the kind of control it is, if it is
    one, and control_of the recipe_id of the recipe whose budget it has. revisions: of its methods and searches by name,
    where above 1, since runs of one recipe_id may differ in them; control_of_revisions: those of that other recipe.
    """

    name: str
    label: str
    summary: str | None = None
    source: str | None = None
    control: str | None = None
    control_of: str | None = None
    resolved: Plain = None
    revisions: Unread[dict[str, Whole]] = Field(default_factory=dict)
    control_of_revisions: Unread[dict[str, Whole]] = Field(default_factory=dict)


class ReceiptWeights(ReceiptPart):
    """Digests of all weights, before and after the recipe: `blake3:` and hex digits, or in receipts of before SHA-256
    in hex; `weights_digest` says what two of them tell of each other. digest: the function that they are of; absent in
    receipts of before.
    """

    digest_before: str | None = None
    digest_after: str | None = None
    digest: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_the_function(cls, data: Any) -> Any:
        before = data.get("digest_before") if isinstance(data, dict) else None
        if isinstance(before, str) and ":" in before:
            return {"digest": before.partition(":")[0], **data}
        return data


class ReceiptMatrix(ReceiptPart):
    """What was done to one weight matrix, or to one part (head, expert) of a fused one.

    step: number of the recipe's step, from 0. name: the parameter; part: which part of it, None for all of it.
    shape: [out, in], of the part. rank_before: min(shape).
    energy_kept: `||W'||^2 / ||W||^2`; relative_error: `||W - W'|| / ||W||`; Frobenius norms of the stored values.
    digest_before, digest_after: of the whole parameter, or of the one expert of it, as in `ReceiptWeights`.
    bias_shift: whether the layer's bias was changed too.
    parameters_after: count for two factors where they hold less than the dense matrix; the dense count otherwise.
    fallback: why the method did something simpler here, None where it did not.
    decomposition: `gram_fp32`, `gram_fp64`, `svd` or `randomised`; None for a method that needs none or has its own;
    a phrase of a method's, such as `beside 5 prime units`, whose numbers parameters_after counts beside the factors.
    excess_error: a bound on `error / least possible error - 1` at this rank, in the norm that the method truncates in,
    before the result is rounded to the stored dtype; an estimate for `randomised`, None for `svd`.
    stored: `factors` (two low-rank layers that the model computes with) or `dense`. rank_asked: the rank that the
    budget means, of which rank_after is what alignment left; None where nothing asked for one.
    """

    step: Whole | None = None
    method: str | None = None
    name: str
    part: str | None = None
    role: str | None = None
    layer: Whole | None = None
    shape: tuple[Whole, ...] = ()
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
    decomposition: str | None = None
    excess_error: float | None = None
    stored: str | None = None
    rank_asked: Whole | None = None

    @property
    def key(self) -> str:
        """The parameter, with the part of it where it is one of several."""
        return self.name if self.part is None else f"{self.name} {self.part}"


class MatrixRecord(ReceiptMatrix):
    """A row as this version writes it: what is known of every edit is required.

    rows_kept, columns_kept: of a matrix that lost whole rows or columns, how many are left; absent of others. The lost
    ones are zero, and parameters_after counts the matrix without them. Of a feeding matrix the two counts are with the
    bias. columns_of_step: how many columns its step left by itself, where an earlier one had taken others; absent else.
    sharing: how many matrices have one factor in common with this one, which parameters_after counts in the first
    of them alone; absent where none does. counted_as: `pifa` where parameters_after is of pivot rows, their places
    counted, rather than of two factors; absent else.
    """

    step: Whole
    method: str
    shape: tuple[int, int]
    rank_before: Whole
    rank_after: Whole
    energy_kept: float
    relative_error: float
    digest_before: str
    digest_after: str
    seconds: float
    bias_shift: bool
    parameters_before: Whole
    parameters_after: Whole
    stored: str
    rank_asked: Whole | None
    rows_kept: Whole | None = None
    columns_kept: Whole | None = None
    columns_of_step: Whole | None = None
    sharing: Whole | None = None
    counted_as: str | None = None


class ReceiptCalibration(ReceiptPart):
    """One use of calibration documents. documents: lm-eval's doc hashes; left_out_because_scored: how many documents
    of the split were not drawn because a task of the run scores them. contents: digests of what these documents ask, by
    `same_document`; wordings: what tells each however it is worded, as hashes; both absent in receipts of before.
    """

    step: Whole | None = None
    task: str | None = None
    split: str | None = None
    samples: Whole | None = None
    seed: Whole | None = None
    shuffled_labels: Unread[bool | None] = None
    left_out_because_scored: Unread[Whole | None] = None
    documents: list[str] = Field(default_factory=list)
    contents: Unread[list[str]] = Field(default_factory=list)
    wordings: Unread[list[str]] = Field(default_factory=list)


class ReceiptStatistic(ReceiptPart):
    """One statistic of the calibration documents that a step used, and whether sink tokens belong in it.

    sinks: `counted`, `left out`, or of which part they are left out; rule: which tokens are sinks. tokens: the most
    that a matrix has seen, sinks among them; sink_tokens: the fewest and the most sinks among the tokens of one matrix.
    Both are None where they were not counted, as in training.
    """

    step: Whole
    name: str
    sinks: str
    rule: str | None = None
    tokens: Whole | None = None
    sink_tokens: tuple[Whole, Whole] | None = None


Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]


class ReceiptRanOn(ReceiptPart):
    """Where a run was made. host: its name in the network. gpus: the name of each GPU that was used, none on a CPU;
    driver: version of NVIDIA's. ranks: processes that shared the work. engine: `hf`, `vllm` or `sglang`. sweep, cell:
    the sweep that asked for the run, and which part of it. What is absent, or None, is not known.
    """

    host: Name | None = None
    gpus: Annotated[list[Name], Field(max_length=MOST_GPUS)] = Field(default_factory=list)
    driver: Name | None = None
    ranks: Annotated[int, Field(ge=1, le=2**31)] | None = None
    engine: Name | None = None
    engine_version: Name | None = None
    sweep: Name | None = None
    cell: Name | None = None


class ReceiptTotals(ReceiptPart):
    """Sums over the whole model. The figures after an edit are those of factored storage for matrices that it makes
    smaller, and dense otherwise; for a factored recipe they are those of the model as it runs.

    bytes: of all parameters in the model's dtypes. flops_per_token: two for each weight that multiplies a token,
    attention scores left out. tokens_per_second: of scoring, padding included; None where it was not measured.
    """

    parameters_before: Whole | None = None
    parameters_after: Whole | None = None
    bytes_before: Unread[int | None] = None
    bytes_after: Unread[int | None] = None
    flops_per_token_before: Unread[int | None] = None
    flops_per_token_after: Unread[int | None] = None
    matrices_edited: Unread[int | None] = None
    tokens_per_second_before: Unread[float | None] = None
    generated_tokens_per_second_before: Unread[float | None] = None
    tokens_per_second_after: Unread[float | None] = None
    generated_tokens_per_second_after: Unread[float | None] = None


class ReceiptSpeed(ReceiptPart):
    """Tokens per second of one kind of pass while the variant was scored, the first call left out. phase: `scoring`
    (whole texts, every position's logits), `prefill` (prompts, before they are continued) or `decode` (one token for
    each text). calls: of the model, or of generating. batch: texts at once, and length: positions of a text that a
    token may look at, both means over the calls.
    """

    phase: str
    calls: Whole
    tokens_per_second: float
    batch: float
    length: float


class ReceiptScoredAs(ReceiptPart):
    """The control of another recipe whose edit, and so whose scores, these are. run: the name of its folder."""

    label: str
    run: str


class ReceiptFile(ReceiptPart):
    """A file of the run's folder, as it was written. bytes: its size; sha256: of its contents, in hex."""

    name: str
    bytes: Whole
    sha256: str


class Receipt(ReceiptPart):
    """The whole file. It is filled in stages, so its fields can be assigned, and every assignment is checked.

    spec_id: hash of everything asked (model, tasks, settings, recipe); settings_id: the same without the recipe;
    variant_id: hash of the edited model; recipe_id: hash of the resolved recipe.
    started, finished: ISO 8601, UTC. seconds: by stage (load, calibrate, edit, evaluate). log: rows of training, one an
    epoch, and of removals on trial, one a trial. searches: one record a search, with every trial. calibration_loss: of
    the documents of each step, before and after it. seeds: python, numpy, torch, fewshot.
    settings: of the evaluation; tasks: the settings of each task by name; versions: of each package by name.
    files: the other files of the folder. ran_on: absent in receipts of before. scored_as: of a control whose edit was
    scored as that of another recipe, which one; absent of all others.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    format: Whole
    status: Literal["complete", "failed"]
    failure: ReceiptFailure | None = None
    spec_id: str
    settings_id: str | None = None
    recipe_id: str | None = None
    command: list[str] = Field(default_factory=list)
    started: str | None = None
    model: ReceiptModel
    recipe: ReceiptRecipe
    warnings: list[str] = Field(default_factory=list)
    seeds: dict[str, Plain] = Field(default_factory=dict)
    settings: dict[str, Plain] = Field(default_factory=dict)
    tasks: dict[str, Plain] = Field(default_factory=dict)
    versions: dict[str, Plain] = Field(default_factory=dict)
    ran_on: ReceiptRanOn | None = None
    weights: ReceiptWeights = Field(default_factory=ReceiptWeights)
    totals: ReceiptTotals | None = None
    speed: Unread[list[ReceiptSpeed]] = Field(default_factory=list)
    variant_id: str | None = None
    matrices: list[SerializeAsAny[ReceiptMatrix]] = Field(default_factory=list)
    calibration: list[ReceiptCalibration] = Field(default_factory=list)
    statistics: Unread[list[ReceiptStatistic]] = Field(default_factory=list)
    log: Unread[list[dict[str, Plain]]] = Field(default_factory=list)
    searches: Unread[list[dict[str, Plain]]] = Field(default_factory=list)
    calibration_loss: Unread[list[dict[str, Plain]]] = Field(default_factory=list)
    finished: str | None = None
    seconds: dict[str, Plain] = Field(default_factory=dict)
    files: Unread[list[ReceiptFile]] = Field(default_factory=list)
    scored_as: Unread[ReceiptScoredAs | None] = None


def read_receipt(path: Path) -> tuple[Receipt, dict[str, Any]]:
    """The checked receipt, and the raw object for the parts that are only shown, both without secrets. Raises
    `Unreadable`.
    """
    data = public_receipt(load_json(path))
    if not isinstance(data, dict):
        raise Unreadable(f"{path.name} is not a receipt (not a JSON object)")
    number = data.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise Unreadable(f"{path.name} has format {number}, this version reads up to {FORMAT}: upgrade lm-eval-recipes")
    try:
        receipt = Receipt.model_validate(data, context=_READING)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        raise Unreadable(clean(f"{path.name} is not a receipt of format {FORMAT}: " + "; ".join(problems))) from error
    if receipt.status == "failed" and receipt.failure is None:
        raise Unreadable(f"{path.name} says failed, but not why")
    return receipt, data


def read_ran_on(value: Any) -> ReceiptRanOn | None:
    """What a receipt's JSON says of where the run was made; None where it says nothing that can be read."""
    try:
        return ReceiptRanOn.model_validate(value, context=_READING)
    except ValidationError:
        return None


def public_receipt(data: Any) -> Any:
    """A receipt's JSON without tokens and passwords, which were written before they were kept out."""
    if not isinstance(data, dict):
        return data
    public = {**data, **without_secrets({key: data[key] for key in _WITH_SETTINGS if key in data})}
    command = data.get("command")
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        public["command"] = redacted_command(command)
    return public


def storable(part: _Part) -> _Part:
    """A part of the receipt as the store can hold it: text without what UTF-8 or SQL lack, numbers finite or None."""
    changes: Mapping[str, Any] = {name: _storable(value) for name, value in part}
    return part.model_copy(update=changes)


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


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return finite(value)
    return [_storable(item) for item in value] if isinstance(value, list) else value
