"""The weights of a loaded model, read and replaced one matrix at a time, and put back bit for bit.

Arithmetic is in fp32 (fp64 for fp64 weights), storage in the weight's own orientation and dtype. Originals are spilled
to a scratch folder before the first change, not held in memory: the extra memory of an edit stays one matrix and its
factors, however many matrices a recipe touches. Digests show that what was put back is what was there. They are worked
out beside the next edit where nobody waits for them (`digest_soon`), and waited for before the bytes are written to.

A matrix that is factored (`factor`) is computed by a `LowRankLinear` in the place of its layer, and the memory of its
dense weight is given back until `restore`. It reads as the product of its factors; whatever is then written to a part
of it makes dense again what that part touches.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness_ext.errors import UserError
from harness_ext.model.built import module_classes, shared_parameters
from harness_ext.model.cut import is_cut, whole, write_whole
from harness_ext.model.digests import (
    background_digest,
    combined,
    digests_of,
    model_digest,
    named,
    on_cpu,
    tensor_digest,
)
from harness_ext.model.layout import Layout, Matrix
from harness_ext.model.module_replacement import ModuleReplacements
from harness_ext.model.offload import whole_value
from harness_ext.model.size import size_of
from harness_ext.model.slices import overlap, places, put, take
from harness_ext.model.typed import pretrained
from harness_ext.storage.disk import disk_trouble

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness_ext.model.low_rank import LowRankPart

__all__ = ["Weights", "model_digest", "tensor_digest"]


_MOST_HASHING = 4
"""Digests that are worked out at a time beside the edits."""


class _Original(NamedTuple):
    """What an edited parameter was: the file that holds its values, and its dtype."""

    path: Path
    dtype: torch.dtype


class Weights:
    """Access to a model's weights by `Matrix`, with undo.

    model: a transformers model. scratch: an existing folder for the originals of edited parameters; the caller removes
    it. added_biases: the names of those that edits made. size: of the model as it was.

    Raises UserError where weights are quantised or not in memory (offloaded), since those cannot be edited in place.
    """

    def __init__(self, model: nn.Module, scratch: Path) -> None:
        self._model = model
        self._scratch = scratch
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._digests: dict[tuple[str, int | None], str] = {}
        self._hashing: dict[tuple[str, int | None], Future[str]] = {}
        self._finite: dict[str, set[Matrix]] = {}
        self._written: dict[str, set[Matrix]] = {}
        self._before: dict[tuple[str, int | None], str] = {}
        self._originals: dict[str, _Original] = {}
        self._replacements = ModuleReplacements(model, self._renew)
        self.size = size_of(model)
        self.added_biases: list[str] = []
        self._bias_owners: dict[str, tuple[str, ...]] = {}
        self.layout = Layout(
            pretrained(model).config.to_dict(),
            {name: tuple(value.shape) for name, value in self._parameters.items()},
            shared_parameters(model),
            module_classes(model),
        )

    def check_editable(self, matrices: tuple[Matrix, ...]) -> None:
        """Raise UserError naming the first matrix that cannot be edited, and what to do about it."""
        for matrix in matrices:
            value = self._stored(matrix.parameter)
            if value.device.type == "meta":
                raise UserError(
                    f"{matrix.parameter} is offloaded, not in memory, and cannot be edited there: `lm_eval run"
                    " --recipe` and `lm_eval export` edit the files of a checkpoint, for recipes that need the weights"
                    " only; for others give the model more memory, or use `lm_eval export --layers_on DEVICE`"
                )
            if not value.dtype.is_floating_point or value.element_size() == 1:
                raise UserError(
                    f"{matrix.parameter} is quantised ({str(value.dtype).removeprefix('torch.')}) and cannot be edited:"
                    " load the model unquantised, in float32, bfloat16 or float16"
                )

    def check_factorable(self, matrices: Sequence[Matrix]) -> None:
        """Raise UserError naming the first matrix that two low-rank layers cannot take the place of, and what to do
        about it.
        """
        self._replacements.check(matrices)

    def check_dense(self, matrices: Sequence[Matrix]) -> None:
        """Raise UserError naming the first matrix that an earlier step left as two low-rank layers."""
        for matrix in matrices:
            if matrix.parameter in self._replacements:
                raise UserError(
                    f"{matrix.parameter} is computed as two low-rank layers since an earlier step, and a search"
                    " tries edits of dense matrices: set factored=false there, or search first"
                )

    def read(self, matrix: Matrix) -> Tensor:
        """A copy of the matrix, `[out, in]`, in fp32 (fp64 where the weight is); of a factored one, the product. Named
        (see `digests`) by the stored bytes, the part of them and the dtype of the copy; a part that no edit has
        touched, by the bytes before its neighbours were edited.
        """
        values, place = self.values(matrix), (matrix.parameter, matrix.expert)
        touched = any(_overlap(matrix, other) for other in self._written.get(matrix.parameter, ()))
        digest = self._before[place] if place in self._before and not touched else self.digest_of(*place)
        return named(values, f"{digest} {matrix.rows} {matrix.columns} {matrix.stored_transposed} {values.dtype}")

    def values(self, matrix: Matrix) -> Tensor:
        """What `read` gives, without a name."""
        stored = self._stored(matrix.parameter)
        if matrix.parameter in self._replacements:
            low_rank = self._replacements[matrix.parameter]
            return low_rank.product_of(matrix.rows, matrix.columns, _computed_in(stored))
        return values_of(stored, matrix)

    def dtype_of(self, matrix: Matrix) -> torch.dtype:
        """The dtype that the matrix is stored in."""
        return self._stored(matrix.parameter).dtype

    def original(self, matrix: Matrix) -> Tensor:
        """The matrix as it was before all edits, as `values` gives it."""
        from safetensors.torch import load_file

        if matrix.parameter not in self._originals:
            return self.values(matrix)
        (kept,) = load_file(self._originals[matrix.parameter].path).values()
        return values_of(kept, matrix).to(self._stored(matrix.parameter).device)

    def unedited(self, place: str) -> nn.Module:
        """A copy of the part of the model at that place, such as `model.layers.3`, as it was before all edits."""
        from safetensors.torch import load_file

        inside = f"{place}."
        made = copy.deepcopy(self._model.get_submodule(place))
        for name in (name for name in self._replacements if name.startswith(inside)):
            owner, _, attribute = name.removeprefix(inside).rpartition(".")[0].rpartition(".")
            setattr(made.get_submodule(owner), attribute, self._replacements.layer_of(name))
        for name in self.added_biases:
            for module in self._bias_owners[name]:
                if module.startswith(inside):
                    made.get_submodule(module.removeprefix(inside)).register_parameter("bias", None)
        for name, original in self._originals.items():
            if name.startswith(inside):
                value = made.get_parameter(name.removeprefix(inside))
                (kept,) = load_file(original.path).values()
                value.data = kept.to(value.device)
        return made

    def bias_of(self, matrix: Matrix) -> Tensor | None:
        """The bias of the matrix, `[out]` in fp32 (fp64); None where it has none."""
        import torch

        value = self._parameters.get(matrix.bias)
        if value is None:
            return None
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        return take(whole(value.detach()), matrix.rows, 0).to(dtype, copy=True)

    def replace(self, matrix: Matrix, weight: Tensor) -> None:
        """Write `[out, in]` values into the matrix, in its own dtype and orientation; the original is kept for
        `restore`.
        """
        import torch

        self._before_writing_matrix(matrix)
        if matrix.parameter in self._replacements:
            dense, parts = self._without(matrix)
            put(dense, matrix.rows, matrix.columns, weight.to(dense))
            self._replacements.set_parts(matrix, dense, parts)
            return
        value = self._parameters[matrix.parameter]
        with torch.no_grad():
            full = whole(value)
            put(_view(full, matrix), matrix.rows, matrix.columns, weight.to(full))
            if full is not value:
                write_whole(value, full)
        self._forget_digests(matrix.parameter, matrix.expert)

    def factor(self, matrix: Matrix, left: Tensor, right: Tensor) -> None:
        """Compute the matrix as two low-rank layers, left `[m, r]` after right `[r, n]`, in its own dtype; what else
        its layer holds stays as it is. Undone by `restore`.

        `check_factorable` must have passed.
        """
        from harness_ext.model.low_rank import LowRankPart

        self._before_writing_matrix(matrix)
        dense, parts = self._without(matrix)
        self._replacements.set_parts(matrix, dense, [*parts, LowRankPart(matrix.rows, matrix.columns, left, right)])

    def added(self) -> list[Tensor]:
        """The biases that edits made."""
        return [self._parameters[name] for name in self.added_biases]

    def make_dense(self) -> frozenset[str]:
        """Put products in the place of all low-rank layers, each in its own dtype, and return the names of their
        weights. The model still restores to what it was.
        """
        names = frozenset(self._replacements)
        for name in names:
            self._await_digests(name)
            self._replacements.put_back(name, self._replacements[name].product(self._stored(name).dtype))
        return names

    def _without(self, matrix: Matrix) -> tuple[Tensor, list[LowRankPart]]:
        """The layer of a matrix as a dense `[out, in]`, which may share its memory, and those of its factored parts
        that do not touch the matrix.
        """
        if matrix.parameter not in self._replacements:
            return _view(self._parameters[matrix.parameter].detach(), matrix), []
        low_rank = self._replacements[matrix.parameter]
        return low_rank.product(low_rank.lefts[0].dtype), [
            part for part in low_rank.parts if not part.overlaps(matrix.rows, matrix.columns)
        ]

    def _stored(self, name: str) -> Tensor:
        """The parameter of that name; of a factored matrix one of its factors, which has the dtype and the device."""
        return self._replacements[name].lefts[0] if name in self._replacements else self._parameters[name]

    def _renew(self, gone: Collection[str], new: Mapping[str, Tensor]) -> None:
        """Follow the model's parameters when a layer is swapped."""
        for name in gone:
            del self._parameters[name]
            self._forget_digests(name)
        self._parameters |= new

    def shift_bias(self, matrix: Matrix, shift: Tensor) -> None:
        """Add `[out]` to the bias of the matrix, making a zero bias first where the layer has none.

        Raises UserError for a matrix of an expert without one, which cannot be given one.
        """
        import torch

        if matrix.bias not in self._parameters:
            if matrix.expert is not None:
                raise UserError(f"{matrix.key} has no bias to shift: experts have none")
            if is_cut(self._stored(matrix.parameter)):
                raise UserError(f"{matrix.key} has no bias to shift, and with tp_plan it can be given none")
            self._add_bias(matrix)
        self._before_writing(matrix.bias)
        value = self._parameters[matrix.bias]
        with torch.no_grad():
            full = whole(value)
            with_shift(full if matrix.expert is None else full[matrix.expert], matrix, shift)
            if full is not value:
                write_whole(value, full)
        self._forget_digests(matrix.bias)

    def restore(self) -> None:
        """Put every changed parameter back, bit for bit, and check it by its digest.

        Raises UserError, and leaves the model as it is, where somebody changed the dtype of an edited parameter.
        Raises RuntimeError where a digest differs: the model must then not be used further.
        """
        from safetensors.torch import load_file

        self._check_dtypes()
        for name in self._replacements:
            self._replacements.put_back(name)
        expected: dict[str, str] = {}
        for name, (path, _) in self._originals.items():
            self._await_digests(name)
            for known in (self._finite, self._written):
                known.pop(name, None)
            self._before = {place: digest for place, digest in self._before.items() if place[0] != name}
            kept = load_file(path)
            (expected[name],) = kept.keys()
            write_whole(self._parameters[name], kept[expected[name]])
            self._forget_digests(name)
        self._gather_digests(expected)
        for name, digest in digests_of(expected, self.digest_of).items():
            if digest != expected[name]:
                raise RuntimeError(
                    f"{name} could not be restored bit for bit; the scratch folder {self._scratch} may be damaged"
                )
            self._originals.pop(name).path.unlink()
        for name in self.added_biases:
            for module in self._bias_owners.pop(name):
                self._model.get_submodule(module).register_parameter("bias", None)
            del self._parameters[name]
            self._forget_digests(name)
        self.added_biases.clear()

    def _check_dtypes(self) -> None:
        for name, original in self._originals.items():
            before, now = (str(value).removeprefix("torch.") for value in (original.dtype, self._stored(name).dtype))
            if before != now:
                raise UserError(
                    f"{name} cannot be restored: its dtype was changed from {before} to {now} after the recipe was"
                    " applied; reload the model"
                )

    def digest_of(self, name: str, expert: int | None = None) -> str:
        """The digest of a parameter, or of one of its experts: hashing all of them for the edit of each would take
        their number squared.

        Of a factored matrix, over the digests of what its layer holds, without the bias.
        """
        if name in self._replacements:
            held = [
                f"{name.rpartition('.')[0]}.{part}"
                for part, _ in self._replacements[name].named_parameters()
                if part != "bias"
            ]
            return combined(held, self.digest_of)
        waiting = self._hashing.pop((name, expert), None)
        if waiting is not None:
            self._digests[name, expert] = waiting.result()
        if (name, expert) not in self._digests:
            self._digests[name, expert] = tensor_digest(self._of_expert(name, expert))
        return self._digests[name, expert]

    def digest_soon(self, name: str, expert: int | None = None) -> Future[str]:
        """What `digest_of` gives now, worked out beside what comes next. Of a factored matrix it is ready at once."""
        if name in self._replacements or (name, expert) in self._digests:
            done: Future[str] = Future()
            done.set_result(self.digest_of(name, expert))
            return done
        if (name, expert) not in self._hashing:
            while len(self._hashing) >= _MOST_HASHING:
                # The oldest: each may hold a copy on the CPU.
                self.digest_of(*next(iter(self._hashing)))
            self._hashing[name, expert] = background_digest(self._of_expert(name, expert))
        return self._hashing[name, expert]

    def _of_expert(self, name: str, expert: int | None) -> Tensor:
        value = whole_value(self._model, name, self._parameters[name])
        return value if expert is None else whole(value)[expert]

    def _await_digests(self, name: str) -> None:
        """Bytes that are being hashed must not be written to. What went wrong is raised to whoever wants the digest."""
        for key in [key for key in self._hashing if key[0] == name]:
            waiting = self._hashing.pop(key)
            if waiting.exception() is None:
                self._digests[key] = waiting.result()

    def _before_writing(self, name: str) -> None:
        self._await_digests(name)
        self._keep_original(name)

    def digest(self) -> str:
        """The digest over the names and digests of all parameters, in order of name: the identity of the weights as
        they are now.
        """
        for key in list(self._hashing):
            self.digest_of(*key)
        self._gather_digests(self._parameters)
        return combined(self._parameters, self.digest_of)

    def _gather_digests(self, names: Iterable[str]) -> None:
        """Work out the digests of what is cut over ranks, in one order: threads would gather in another in each."""
        for name in sorted(names):
            if name in self._parameters and is_cut(self._parameters[name]):
                self.digest_of(name)

    def first_not_finite(self, matrix: Matrix) -> str | None:
        """Where the matrix holds a NaN or an infinity, as `[row, column]` of its `[out, in]` view; None where it holds
        none. What was looked at is not looked at again before it is written to.
        """
        import torch

        known = self._finite.setdefault(matrix.parameter, set())
        if matrix in known:
            return None
        finite = torch.isfinite(self._as_stored(matrix))
        if bool(finite.all()):
            known.add(matrix)
            return None
        row, column = (~finite).nonzero()[0].tolist()
        return f"[{row}, {column}]"

    def _before_writing_matrix(self, matrix: Matrix) -> None:
        """Note what is to be looked at anew, and what the bytes were."""
        place = (matrix.parameter, matrix.expert)
        if place not in self._before:
            self._before[place] = self.digest_of(*place)
        self._before_writing(matrix.parameter)
        self._written.setdefault(matrix.parameter, set()).add(matrix)
        known = self._finite.get(matrix.parameter, set())
        self._finite[matrix.parameter] = {other for other in known if not _overlap(matrix, other)}

    def _as_stored(self, matrix: Matrix) -> Tensor:
        """The matrix `[out, in]` in its own dtype, which may share its memory."""
        if matrix.parameter in self._replacements:
            return self.values(matrix)
        view = _view(whole(self._parameters[matrix.parameter].detach()), matrix)
        return take(take(view, matrix.rows, 0), matrix.columns, 1)

    def _forget_digests(self, name: str, expert: int | None = None) -> None:
        """After a change of a parameter: of one of its experts, or anywhere in it."""
        value = self._parameters.get(name)
        experts = (
            [expert] if expert is not None else range(value.shape[0]) if value is not None and value.ndim == 3 else []
        )
        for part in (None, *experts):
            self._digests.pop((name, part), None)
            self._hashing.pop((name, part), None)

    def _keep_original(self, name: str) -> None:
        from safetensors.torch import save_file

        if name in self._originals or name in self.added_biases:
            return
        path = self._scratch / f"{hashlib.sha256(name.encode()).hexdigest()}.safetensors"
        try:
            save_file({self.digest_of(name): on_cpu(self._parameters[name])}, path)
        except Exception as error:
            if (trouble := disk_trouble(error)) is None:
                raise
            raise UserError(
                f"the original of {name} cannot be kept in {self._scratch}: {trouble}; set TMPDIR to a folder with room"
            ) from error
        self._originals[name] = _Original(path, self._parameters[name].dtype)

    def _add_bias(self, matrix: Matrix) -> None:
        import torch

        weight = self._stored(matrix.parameter)
        bias = torch.nn.Parameter(weight.new_zeros(matrix.full_shape[0]), requires_grad=False)
        self._bias_owners[matrix.bias] = matrix.modules
        for module in matrix.modules:
            self._model.get_submodule(module).bias = bias
        self._parameters[matrix.bias] = bias
        self.added_biases.append(matrix.bias)


def values_of(value: Tensor, matrix: Matrix) -> Tensor:
    """A copy of the matrix in a stored parameter, `[out, in]`, in fp32 (fp64 where that is)."""
    part = take(take(_view(whole(value.detach()), matrix), matrix.rows, 0), matrix.columns, 1)
    return part.to(_computed_in(value), copy=True).contiguous()


def _computed_in(value: Tensor) -> torch.dtype:
    import torch

    return torch.float64 if value.dtype == torch.float64 else torch.float32


def with_part(value: Tensor, matrix: Matrix, weight: Tensor) -> Tensor:
    """A copy of a stored parameter with `[out, in]` values in the place of the matrix."""
    changed = value.detach().clone()
    put(_view(changed, matrix), matrix.rows, matrix.columns, weight.to(changed))
    return changed


def with_shift(bias: Tensor, matrix: Matrix, shift: Tensor) -> Tensor:
    """The bias `[full out]` with a shift `[out]` added, in place, to the rows of the matrix."""
    bias[places(matrix.rows or ((0, matrix.full_shape[0]),))] += shift.to(bias)
    return bias


def _overlap(one: Matrix, other: Matrix) -> bool:
    """Whether two matrices of one parameter share a number."""
    return one.expert == other.expert and overlap(one.rows, other.rows) and overlap(one.columns, other.columns)


def _view(value: Tensor, matrix: Matrix) -> Tensor:
    """The whole weight, or one expert's part of it, as `[out, in]`; shares its memory."""
    whole = value if matrix.expert is None else value[matrix.expert]
    return whole.T if matrix.stored_transposed else whole
