"""What one rank of an allocator is of: a matrix; the part of one beside its prime units (`sola`); or the matrices of a
few layers on top of each other, which share a basis (`basis_sharing`).

A piece has one spectrum, of what its method truncates, and one rank; what stays beside it is in no rank. Trials of
these two are not made: a trial is of the components of one matrix, and theirs are of several, or beside rows that stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness_ext.calibration.by_layer import Statistics, together
from harness_ext.calibration.sinks import SeenTokens
from harness_ext.methods.allocation import Spectrum
from harness_ext.methods.basis_sharing import LAYERS_IN_GROUP, SHARED_ROLES, group_spectrum, groups_of
from harness_ext.methods.feature_space import output_spectrum
from harness_ext.methods.sola import PRIME, light_of, light_part, prime_of
from harness_ext.model.components import COMPONENTS, mlps_among
from harness_ext.search.factorisations import STATISTICS, Factorisation, each_decomposed, step_of

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

Allocated = Literal[Factorisation, "basis_sharing", "sola"]
"""What takes ranks of an allocator: every `Factorisation`, and the two whose ranks are not of whole matrices."""
UNTRIED = ("basis_sharing", "sola")
_READER = COMPONENTS["mlp"].reader
_MOMENT = "input_second_moment"


class Piece(NamedTuple):
    """matrices: those that have one rank together. shape: `[m, n]`, of what is truncated at it."""

    matrices: tuple[Matrix, ...]
    shape: tuple[int, int]

    @property
    def key(self) -> str:
        """The name of its first matrix."""
        return self.matrices[0].key

    def spectrum(self, values: Sequence[float], tokens: int = 1) -> Spectrum:
        """With the kind of its matrices, and with the numbers that stay beside."""
        first = self.matrices[0]
        beside = sum(math.prod(matrix.shape) for matrix in self.matrices) - math.prod(self.shape)
        return Spectrum(self.shape, values, first.role or first.parameter, tokens, beside)

    @property
    def flat(self) -> Spectrum:
        """That of which no more is known than its shape."""
        return self.spectrum([1.0] * min(self.shape))


def pieces_of(matrices: Sequence[Matrix], settings: Mapping[str, Any]) -> list[Piece]:
    """The pieces of matrices that may all be cut. settings: those of the search."""
    own = settings_of(settings)
    if settings["factorisation"] == "basis_sharing":
        groups = groups_of(matrices, SHARED_ROLES, own["layers_in_group"])
        return [Piece(tuple(group), (len(group) * group[0].shape[0], group[0].shape[1])) for group in groups]
    if settings["factorisation"] == "sola":
        return [Piece((matrix,), light_of(matrix.role, matrix.shape, own["prime"])) for matrix in matrices]
    return [Piece((matrix,), matrix.shape) for matrix in matrices]


def settings_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the steps that are found say beside their ranks, by the settings of the search."""
    if settings["factorisation"] == "basis_sharing":
        return {"layers_in_group": settings["layers_in_group"] or LAYERS_IN_GROUP}
    if settings["factorisation"] == "sola":
        return {"prime": PRIME if settings["prime"] is None else settings["prime"]}
    return {}


def spectra_of(
    evaluator: CandidateEvaluator, pieces: Sequence[Piece], settings: Mapping[str, Any]
) -> dict[str, Spectrum]:
    """Of every piece, by its key, in their order."""
    if settings["factorisation"] not in UNTRIED:
        alone: dict[str, Spectrum] = {}
        for matrix, one, made in each_decomposed(evaluator, settings["factorisation"]):
            alone[matrix.key] = one
            del made
        return alone
    by_groups = _of_groups if settings["factorisation"] == "basis_sharing" else _of_light_parts
    found = {piece.key: one for piece, one in by_groups(evaluator, pieces, settings)}
    return {piece.key: found[piece.key] for piece in pieces}


def _gathered(
    evaluator: CandidateEvaluator, groups: Sequence[Sequence[Matrix]], settings: Mapping[str, Any]
) -> Iterator[tuple[Sequence[Matrix], Statistics]]:
    """The statistics of each group, once those of all its matrices are there."""
    matrices = [matrix for group in groups for matrix in group]
    order = [matrix for matrix in evaluator.matrices if matrix in matrices]
    learned = evaluator.statistics.gather_in_parts(order, STATISTICS[settings["factorisation"]])
    return together(learned, groups, lambda _, statistics: statistics)


def _of_groups(
    evaluator: CandidateEvaluator, pieces: Sequence[Piece], settings: Mapping[str, Any]
) -> Iterator[tuple[Piece, Spectrum]]:
    by_key = {piece.key: piece for piece in pieces}
    for group, learned in _gathered(evaluator, [piece.matrices for piece in pieces], settings):
        piece = by_key[group[0].key]
        weights = [evaluator.weight(matrix) for matrix in group]
        moments = [
            learned[matrix.key][_MOMENT].to(weight.device) for matrix, weight in zip(group, weights, strict=True)
        ]
        _, eigenvalues, _ = group_spectrum(weights, moments)
        yield piece, piece.spectrum(eigenvalues.sqrt().tolist(), _tokens(learned[group[0].key]))


def _of_light_parts(
    evaluator: CandidateEvaluator, pieces: Sequence[Piece], settings: Mapping[str, Any]
) -> Iterator[tuple[Piece, Spectrum]]:
    by_key = {piece.key: piece for piece in pieces}
    matrices = [piece.matrices[0] for piece in pieces]
    mlps = mlps_among(matrices) if settings_of(settings)["prime"] else []
    inside = {matrix.key for mlp in mlps for matrix in mlp}
    alone = [[matrix] for matrix in matrices if matrix.key not in inside]
    for group, learned in _gathered(evaluator, [*alone, *mlps], settings):
        prime = _prime_of(evaluator, group, learned, settings) if group[0].key in inside else None
        for matrix in group:
            weight = evaluator.weight(matrix)
            part = weight, learned[matrix.key][_MOMENT].to(weight.device)
            if prime is not None:
                part = light_part(*part, prime[None] if matrix.role == _READER else prime[:, None])
            values = output_spectrum(*part)[0].sqrt().tolist()
            yield by_key[matrix.key], by_key[matrix.key].spectrum(values, _tokens(learned[matrix.key]))


def _prime_of(
    evaluator: CandidateEvaluator, mlp: Sequence[Matrix], learned: Statistics, settings: Mapping[str, Any]
) -> Tensor:
    """The prime units of an MLP, `[u]`, as a step of `sola` will find them."""
    reader = next(matrix for matrix in mlp if matrix.role == _READER)
    magnitude = learned[reader.key]["input_magnitude"]
    return prime_of(magnitude, reader.shape[1], settings_of(settings)["prime"], evaluator.generator(reader))


def _tokens(learned: Mapping[str, Tensor]) -> int:
    seen = SeenTokens.of(learned)
    return 1 if seen is None else seen.tokens


def step_at(
    evaluator: CandidateEvaluator, pieces: Sequence[Piece], ranks: Mapping[str, int], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The ordinary step that leaves pieces at these ranks. ranks: by `Piece.key`; every matrix of a piece is given that
    of the piece. What reads the units of an MLP that is cut is in the step at full rank where it is not cut itself,
    since it tells which units are prime.
    """
    own = {matrix.key: ranks[piece.key] for piece in pieces if piece.key in ranks for matrix in piece.matrices}
    if settings_of(settings).get("prime"):
        shapes = {piece.key: piece.shape for piece in pieces}
        for mlp in mlps_among([piece.matrices[0] for piece in pieces]):
            reader = next(matrix.key for matrix in mlp if matrix.role == _READER)
            if any(matrix.key in own for matrix in mlp):
                own.setdefault(reader, min(shapes[reader]))
    return step_of(evaluator, settings["factorisation"], own) | settings_of(settings)
