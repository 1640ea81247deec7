"""What a search of ranks may have below it: any factorisation whose smaller ranks are the first components of its
larger ones, with the spectrum of what it truncates.

Spectra, and what is tried, are of the unedited model: `anchored`, which refits to what earlier edits leave, is tried as
the truncation that it starts from, and `nested_decomposition` as the one that most of its rank goes to. What an
allocator gives ranks without a trial may be more than these: see `harness_ext.search.pieces`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness_ext.calibration.sinks import SeenTokens
from harness_ext.methods import call, registered_methods
from harness_ext.methods.allocation import Spectrum
from harness_ext.model.digests import moved

if TYPE_CHECKING:
    from torch import Tensor

    from harness_ext.model.layout import Matrix
    from harness_ext.search.evaluator import CandidateEvaluator

Factorisation = Literal[
    "feature_space",
    "anchored",
    "nested_decomposition",
    "two_sided_svd",
    "activation_aware_svd",
    "fisher_weighted_svd",
    "truncate_svd",
]
STATISTICS: dict[str, frozenset[str]] = {
    "feature_space": frozenset({"input_second_moment"}),
    "anchored": frozenset({"input_second_moment"}),
    "nested_decomposition": frozenset({"input_second_moment"}),
    "two_sided_svd": frozenset({"input_second_moment", "gradient_second_moment"}),
    "activation_aware_svd": frozenset({"input_magnitude"}),
    "fisher_weighted_svd": frozenset({"fisher_information"}),
    "truncate_svd": frozenset(),
    "basis_sharing": frozenset({"input_second_moment"}),
    "sola": frozenset({"input_second_moment", "input_magnitude"}),
}
"""What the spectra of each are made of, in the unedited model."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "feature_space": {"centred": False, "bias": False},
    "activation_aware_svd": {"exponent": 0.5},
}


def statistics_by_factorisation(settings: Mapping[str, Any]) -> frozenset[str]:
    """What a search with the setting `factorisation` gathers."""
    return STATISTICS[settings["factorisation"]]


def learned_by(factorisation: str) -> frozenset[str]:
    """What a search gathers for spectra; of `feature_space` the mean too, so that the step that it finds shares it."""
    if factorisation == "feature_space":
        return registered_methods()[factorisation].gathered
    return STATISTICS[factorisation]


def tried_as(factorisation: str) -> tuple[str, ...]:
    """A note on trials of what is tried as another factorisation; none on the others."""
    if factorisation not in ("anchored", "nested_decomposition"):
        return ()
    return (f"trials of {factorisation} were made by feature_space, which it starts from",)


Remember = Callable[..., tuple["Tensor", ...]]
"""Calls a pure function of tensors, or gives what an earlier call gave."""


class Decomposed(NamedTuple):
    """A matrix `[m, n]` as a factorisation sees it. values: the singular values `[min(m, n)]` of what it truncates,
    descending. serving: two factors in fp64, `[m, k]` and `[k, n]`, whose first r components are the matrix at rank r,
    for all r up to the k given.
    """

    values: Tensor
    serving: Callable[[int], tuple[Tensor, Tensor]]


def decomposed(
    weight: Tensor, factorisation: Factorisation, learned: Mapping[str, Tensor], remember: Remember = call
) -> Decomposed:
    """weight: `[m, n]`. learned: the statistics that `STATISTICS` names. remember: as `feature_space` has it."""
    dense = weight.double()
    found = {name: moved(learned[name], weight.device) for name in STATISTICS[factorisation]}
    if factorisation == "truncate_svd":
        return _plain(dense)
    if factorisation == "activation_aware_svd":
        return _columns_scaled(dense, found["input_magnitude"].double() ** _SETTINGS[factorisation]["exponent"])
    if factorisation == "fisher_weighted_svd":
        return _columns_scaled(dense, found["fisher_information"].double().sqrt())
    if factorisation == "two_sided_svd":
        return _both_sides_weighted(dense, found["input_second_moment"], found["gradient_second_moment"])
    return _outputs(weight, found["input_second_moment"], remember)


def _plain(dense: Tensor) -> Decomposed:
    import torch

    def serving(largest: int) -> tuple[Tensor, Tensor]:
        left, values, right = torch.linalg.svd(dense, full_matrices=False)
        return left[:, :largest] * values[:largest], right[:largest]

    return Decomposed(torch.linalg.svdvals(dense), serving)


def _columns_scaled(dense: Tensor, scale: Tensor) -> Decomposed:
    from harness_ext.methods.weighted_svd import usable_scale

    usable, _ = usable_scale(scale)
    values, serving = _plain(dense * usable)

    def unscaled(largest: int) -> tuple[Tensor, Tensor]:
        left, right = serving(largest)
        return left, right / usable

    return Decomposed(values, unscaled)


def _both_sides_weighted(dense: Tensor, inputs: Tensor, gradients: Tensor) -> Decomposed:
    from harness_ext.methods.feature_space import leading_directions
    from harness_ext.methods.two_sided_svd import weighted_outputs

    outputs = weighted_outputs(dense, inputs, gradients)

    def serving(largest: int) -> tuple[Tensor, Tensor]:
        directions, _ = leading_directions(outputs.weighted, outputs.eigenvalues, outputs.directions, largest)
        return outputs.unweighted(directions), directions.T @ outputs.weighted

    return Decomposed(outputs.eigenvalues.sqrt(), serving)


def _outputs(weight: Tensor, moment: Tensor, remember: Remember) -> Decomposed:
    from harness_ext.methods.feature_space import leading_directions, output_spectrum

    dense, (eigenvalues, eigenvectors) = weight.double(), remember(output_spectrum, weight, moment)

    def serving(largest: int) -> tuple[Tensor, Tensor]:
        directions, _ = leading_directions(dense, eigenvalues, eigenvectors, largest)
        return directions, directions.T @ dense

    return Decomposed(eigenvalues.sqrt(), serving)


def each_decomposed(
    evaluator: CandidateEvaluator, factorisation: Factorisation
) -> Iterator[tuple[Matrix, Spectrum, Decomposed]]:
    """The matrices of a search in their order, decomposed one at a time, statistics gathered for as many as fit
    together. What is made of a matrix is to be let go before the next is asked for.
    """
    names = learned_by(factorisation)
    parts = evaluator.statistics.gather_in_parts(evaluator.matrices, names) if names else [(evaluator.matrices, {})]
    remember = evaluator.context.model.statistics_cache.remember
    for matrices, found in parts:
        for matrix in matrices:
            learned = found.get(matrix.key, {})
            made = decomposed(evaluator.weight(matrix), factorisation, learned, remember)
            seen = SeenTokens.of(learned)
            kind = matrix.role or matrix.parameter
            yield matrix, Spectrum(matrix.shape, made.values.tolist(), kind, 1 if seen is None else seen.tokens), made
            # Else they would be held while the next is decomposed.
            del made, learned
        del found


def step_of(evaluator: CandidateEvaluator, factorisation: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The ordinary step that leaves matrices at these ranks. ranks: by `Matrix.key`."""
    assert evaluator.step.calibration is not None, "a search has calibration documents"
    order = [matrix.key for matrix in evaluator.matrices if matrix.key in ranks]
    learned = {"calibration": evaluator.step.calibration.model_dump(mode="json")} if STATISTICS[factorisation] else {}
    return {
        "method": factorisation,
        "matrices": order,
        "keep": {"ranks": {key: ranks[key] for key in order}},
        **_SETTINGS.get(factorisation, {}),
        **learned,
    }


def edits_at(
    evaluator: CandidateEvaluator, factors: Mapping[str, tuple[Tensor, Tensor]], ranks: Mapping[str, int]
) -> dict[Matrix, Tensor]:
    """The matrices that have ranks, at these, on the model's device. factors: of no smaller rank, by `Matrix.key`."""
    edits = {}
    for matrix in evaluator.matrices:
        if matrix.key in ranks:
            left, right = factors[matrix.key]
            rank = ranks[matrix.key]
            edits[matrix] = (left[:, :rank] @ right[:rank]).to(evaluator.lm.device)
    return edits
