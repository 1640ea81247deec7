"""The weights of a loaded model, read and replaced one matrix at a time, and put back bit for bit.

Arithmetic is in fp32 (fp64 for fp64 weights), storage in the weight's own orientation and dtype. Originals are spilled to a scratch folder before the first change, not held in memory: the extra
memory of an edit stays one matrix and its factors, however many matrices a recipe touches. Digests show that what was put back is what was there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from harness_ext.anatomy import Anatomy, Matrix
from harness_ext.errors import UserError
from harness_ext.families import Ranges

if TYPE_CHECKING:
    from torch import Tensor, nn

_HASHING_THREADS = 4


class Weights:
    """Access to a model's weights by `Matrix`, with undo.

    model: a transformers model. scratch: an existing folder for the originals of edited parameters; the caller removes it. added_biases: the names of those that edits made.

    Raises UserError where weights are quantised or not in memory (offloaded), since those cannot be edited in place.
    """

    def __init__(self, model: nn.Module, scratch: Path) -> None:
        self._model = model
        self._scratch = scratch
        self._parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._digests: dict[tuple[str, int | None], str] = {}
        self._spilled: dict[str, Path] = {}
        self.added_biases: list[str] = []
        self.anatomy = Anatomy(model.config.to_dict(), {name: tuple(value.shape) for name, value in self._parameters.items()})

    def check_editable(self, matrices: tuple[Matrix, ...]) -> None:
        """Raise UserError naming the first matrix that cannot be edited, and what to do about it."""
        for matrix in matrices:
            value = self._parameters[matrix.parameter]
            if value.device.type == "meta":
                raise UserError(f"{matrix.parameter} is offloaded, not in memory, and cannot be edited: give the model more memory, or drop parallelize and offloading")
            if not value.dtype.is_floating_point or value.element_size() == 1:
                raise UserError(f"{matrix.parameter} is quantised ({str(value.dtype).removeprefix('torch.')}) and cannot be edited: load the model unquantised, in float32, bfloat16 or float16")

    def read(self, matrix: Matrix) -> Tensor:
        """A copy of the matrix, `[out, in]`, in fp32 (fp64 where the weight is)."""
        import torch

        value = self._parameters[matrix.parameter].detach()
        part = _take(_take(_view(value, matrix), matrix.rows, 0), matrix.columns, 1)
        return part.to(torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True).contiguous()

    def replace(self, matrix: Matrix, weight: Tensor) -> None:
        """Write `[out, in]` values into the matrix, in its own dtype and orientation; the original is kept for `restore`."""
        import torch

        self._keep_original(matrix.parameter)
        value = self._parameters[matrix.parameter]
        with torch.no_grad():
            _put(_view(value, matrix), matrix.rows, matrix.columns, weight.to(value))
        self._forget_digests(matrix.parameter, matrix.expert)

    def shift_bias(self, matrix: Matrix, shift: Tensor) -> None:
        """Add `[out]` to the bias of the matrix, making a zero bias first where the layer has none.

        Raises UserError for a matrix of an expert, which has none and cannot be given one.
        """
        import torch

        if matrix.expert is not None:
            raise UserError(f"{matrix.key} has no bias to shift: experts have none")
        if matrix.bias not in self._parameters:
            self._add_bias(matrix)
        self._keep_original(matrix.bias)
        value = self._parameters[matrix.bias]
        with torch.no_grad():
            start = 0
            for low, high in matrix.rows or ((0, matrix.full_shape[0]),):
                value[low:high] += shift[start : start + high - low].to(value)
                start += high - low
        self._forget_digests(matrix.bias)

    def restore(self) -> None:
        """Put every changed parameter back, bit for bit, and check it by its digest.

        Raises RuntimeError where a digest differs: the model must then not be used further.
        """
        import torch
        from safetensors.torch import load_file

        for name, path in self._spilled.items():
            kept = load_file(path)
            (digest,) = kept.keys()
            with torch.no_grad():
                self._parameters[name].copy_(kept[digest])
            self._forget_digests(name)
            if self.digest_of(name) != digest:
                raise RuntimeError(f"{name} could not be restored bit for bit; the scratch folder {self._scratch} may be damaged")
            path.unlink()
        self._spilled.clear()
        for name in self.added_biases:
            module, _, attribute = name.rpartition(".")
            setattr(self._model.get_submodule(module), attribute, None)
            del self._parameters[name]
            self._forget_digests(name)
        self.added_biases.clear()

    def digest_of(self, name: str, expert: int | None = None) -> str:
        """SHA-256 over a parameter's dtype, shape and bytes, or over those of one of its experts: hashing all of them for the edit of each would take their number squared."""
        if (name, expert) not in self._digests:
            value = self._parameters[name]
            self._digests[name, expert] = tensor_digest(value if expert is None else value[expert])
        return self._digests[name, expert]

    def digest(self) -> str:
        """SHA-256 over the names and digests of all parameters, in order of name: the identity of the weights as they are now."""
        return _combined(self._parameters, self.digest_of)

    def first_not_finite(self, matrix: Matrix) -> str | None:
        """Where the matrix holds a NaN or an infinity, as `[row, column]` of its `[out, in]` view; None where it holds none."""
        import torch

        finite = torch.isfinite(self.read(matrix))
        if bool(finite.all()):
            return None
        row, column = (~finite).nonzero()[0].tolist()
        return f"[{row}, {column}]"

    def _forget_digests(self, name: str, expert: int | None = None) -> None:
        """After a change of a parameter: of one of its experts, or anywhere in it."""
        value = self._parameters.get(name)
        experts = [expert] if expert is not None else range(value.shape[0]) if value is not None and value.ndim == 3 else []
        for part in (None, *experts):
            self._digests.pop((name, part), None)

    def _keep_original(self, name: str) -> None:
        from safetensors.torch import save_file

        if name in self._spilled or name in self.added_biases:
            return
        path = self._scratch / f"{hashlib.sha256(name.encode()).hexdigest()}.safetensors"
        try:
            save_file({self.digest_of(name): self._parameters[name].detach().cpu().contiguous()}, path)
        except OSError as error:
            raise UserError(f"the original of {name} cannot be kept in {self._scratch}: {error.strerror or error}; set TMPDIR to a folder with room") from None
        self._spilled[name] = path

    def _add_bias(self, matrix: Matrix) -> None:
        import torch

        weight = self._parameters[matrix.parameter]
        bias = torch.nn.Parameter(weight.new_zeros(matrix.full_shape[0]), requires_grad=False)
        self._model.get_submodule(matrix.module).bias = bias
        self._parameters[matrix.bias] = bias
        self.added_biases.append(matrix.bias)


def model_digest(model: nn.Module) -> str:
    """The digest that `Weights.digest` gives, of a model that is only looked at."""
    parameters = dict(model.named_parameters())
    return _combined(parameters, lambda name: tensor_digest(parameters[name]))


def _combined(names: Iterable[str], digest_of: Callable[[str], str]) -> str:
    ordered = sorted(names)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = list(pool.map(digest_of, ordered))
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in zip(ordered, digests, strict=True)).encode()).hexdigest()


def tensor_digest(value: Tensor) -> str:
    """SHA-256 over a tensor's dtype, shape and bytes; equal exactly where the bits are."""
    import torch

    if value.device.type == "meta":
        raise UserError("some weights of the model are offloaded, not in memory, and can neither be edited nor told apart: give the model more memory, or drop parallelize and offloading")
    data = value.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{data.dtype} {tuple(data.shape)} ".encode())
    if data.numel():
        hasher.update(data.reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def _view(value: Tensor, matrix: Matrix) -> Tensor:
    """The whole weight, or one expert's part of it, as `[out, in]`; shares its memory."""
    whole = value if matrix.expert is None else value[matrix.expert]
    return whole.T if matrix.stored_transposed else whole


def _take(value: Tensor, ranges: Ranges | None, axis: int) -> Tensor:
    import torch

    if ranges is None:
        return value
    return torch.cat([value.narrow(axis, start, stop - start) for start, stop in ranges], dim=axis)


def _put(whole: Tensor, rows: Ranges | None, columns: Ranges | None, values: Tensor) -> None:
    """Write values into the ranges of a 2-D view."""
    for row, low, high in _spans(rows, whole.shape[0]):
        for column, left, right in _spans(columns, whole.shape[1]):
            whole[low:high, left:right] = values[row : row + high - low, column : column + right - left]


def _spans(ranges: Ranges | None, full: int) -> Iterator[tuple[int, int, int]]:
    """The place of each range in the part, then its start and stop in the whole."""
    place = 0
    for start, stop in ranges or ((0, full),):
        yield place, start, stop
        place += stop - start
