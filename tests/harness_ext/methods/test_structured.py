"""Every method on matrices with a trap in them, in the fp32 in which it is used, against formulas in float64 numpy.

Where singular values are equal the edit is not unique, so what is compared is what the formula determines: distances,
ranks, projections, and which numbers are zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch

from harness_ext.errors import UserError
from harness_ext.linalg.components import Component
from harness_ext.linalg.decompose import Decomposer
from harness_ext.methods import AnyEdit, Svd, call, registered_methods
from harness_ext.methods.budget import Keep
from harness_ext.methods.concept_projection import NO_DIFFERENCE
from harness_ext.methods.weighted_svd import SCALE_FLOOR, marchenko_pastur_median
from harness_ext.model.geometry import Heads

TRUNCATE = Decomposer().truncate
RANDOM = numpy.random.default_rng(7)


def orthonormal(rows: int, columns: int) -> numpy.ndarray:
    return numpy.linalg.qr(RANDOM.standard_normal((rows, columns)))[0]


MATRICES: dict[str, numpy.ndarray] = {
    "random": RANDOM.standard_normal((9, 13)),
    "tall": RANDOM.standard_normal((13, 9)),
    "deficient": RANDOM.standard_normal((10, 3)) @ RANDOM.standard_normal((3, 12)),
    "repeated": orthonormal(8, 8) @ numpy.diag([3, 3, 3, 2, 2, 2, 1, 1]) @ orthonormal(12, 8).T,
    "orthogonal": orthonormal(7, 7),
    "row": RANDOM.standard_normal((1, 11)),
    "column": RANDOM.standard_normal((11, 1)),
    "single": numpy.array([[-2.5]]),
    "zero": numpy.zeros((6, 9)),
    "zero columns": RANDOM.standard_normal((6, 9)) * (numpy.arange(9) % 3 == 0),
    "badly scaled columns": RANDOM.standard_normal((8, 11)) * numpy.logspace(-6, 6, 11),
    "badly scaled rows": RANDOM.standard_normal((8, 11)) * numpy.logspace(-6, 6, 8)[:, None],
    "tiny": RANDOM.standard_normal((6, 7)) * 1e-20,
    "huge": RANDOM.standard_normal((6, 7)) * 1e15,
}


class Case:
    """A matrix as the engine hands it over, in fp32, and the same numbers in float64; inputs of 40 tokens `[n, N]` with
    a mean, and gradients of as many.
    """

    def __init__(self, name: str) -> None:
        self.tensor = torch.tensor(MATRICES[name], dtype=torch.float32)
        self.weight = self.tensor.double().numpy()
        self.rows, self.columns = self.weight.shape
        self.full = min(self.weight.shape)
        self.norm = float(numpy.linalg.norm(self.weight))
        generator = numpy.random.default_rng(3)
        self.inputs = generator.standard_normal((self.columns, 40)) * numpy.linspace(2, 0.2, self.columns)[
            :, None
        ] + generator.standard_normal((self.columns, 1))
        self.mean = self.inputs.mean(1)
        self.effects = generator.standard_normal(self.full)
        self.u, self.s, self.vh = numpy.linalg.svd(self.weight, full_matrices=False)
        self.svd = Svd(*torch.linalg.svd(self.tensor, full_matrices=False))
        self.ranks = sorted({1, (self.full + 1) // 2, self.full})

    def without(self, marks: numpy.ndarray) -> numpy.ndarray:
        """What the marked components, of the factors handed over, make up."""
        u, s, vh = (part.double().numpy() for part in self.svd)
        return (u[:, marks] * s[marks]) @ vh[marks]

    def near(self, found: object, expected: object, scale: float | None = None) -> None:
        scale = self.norm if scale is None else scale
        numpy.testing.assert_allclose(numpy.asarray(found, dtype=float), expected, rtol=0, atol=3e-5 * scale + 1e-30)

    def dropped(self, rank: int, singular_values: numpy.ndarray | None = None) -> float:
        return float(numpy.sqrt(((self.s if singular_values is None else singular_values)[rank:] ** 2).sum()))


def dense(edit: AnyEdit) -> numpy.ndarray:
    found = edit.weight().double().numpy()
    assert numpy.isfinite(found).all() and all(bool(torch.isfinite(part).all()) for part in edit.parts)
    return found


def check_truncate_svd(case: Case, method: Callable[..., AnyEdit]) -> None:
    for rank in case.ranks:
        edit = method(case.tensor, truncate=TRUNCATE, keep=Keep(rank=rank), generator=torch.Generator())
        assert edit.rank == rank
        case.near(numpy.linalg.norm(case.weight - dense(edit)), case.dropped(rank))
        again = method(edit.weight(), truncate=TRUNCATE, keep=Keep(rank=rank), generator=torch.Generator())
        case.near(dense(again), dense(edit))


def check_truncate_clusters(case: Case, method: Callable[..., AnyEdit]) -> None:
    keep = Keep(rank_fraction=0.5)
    for count in (1, 3):
        groups = numpy.array_split(case.weight, min(count, case.rows))
        expected = 0.0
        for rows in groups:
            s = numpy.linalg.svd(rows, compute_uv=False)
            expected += (s[keep.rank_for(rows.shape) :] ** 2).sum()
        found = dense(method(case.tensor, keep=keep, generator=torch.Generator(), clusters=count))
        case.near(numpy.linalg.norm(case.weight - found), numpy.sqrt(expected))
        for rows, kept in zip(groups, numpy.array_split(found, min(count, case.rows)), strict=True):
            assert numpy.linalg.matrix_rank(kept, tol=1e-4 * case.norm + 1e-30) <= keep.rank_for(rows.shape)
    subspaces = dense(
        method(case.tensor, keep=keep, generator=torch.Generator().manual_seed(3), clusters=2, grouping="subspace")
    )
    # Rows are projected onto subspaces of their own: none grows.
    assert (
        numpy.linalg.norm(subspaces, axis=1) <= numpy.linalg.norm(case.weight, axis=1) + 3e-5 * case.norm + 1e-30
    ).all()


def check_identity(case: Case, method: Callable[..., AnyEdit]) -> None:
    edit = method(case.tensor, svd=case.svd)
    case.near(dense(edit), case.weight)
    assert edit.rank == case.full


def check_bottom_components(case: Case, method: Callable[..., AnyEdit]) -> None:
    for rank in case.ranks:
        edit = method(case.tensor, svd=case.svd, keep=Keep(rank=rank))
        case.near(numpy.linalg.norm(dense(edit)), case.dropped(case.full - rank))
        case.near(numpy.linalg.norm(case.weight - dense(edit)), numpy.sqrt((case.s[: case.full - rank] ** 2).sum()))


def check_random_subspace(case: Case, method: Callable[..., AnyEdit]) -> None:
    for rank in case.ranks:
        found = dense(method(case.tensor, keep=Keep(rank=rank), generator=torch.Generator().manual_seed(5)))
        gaussian = torch.randn(case.full, rank, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
        projector = gaussian @ numpy.linalg.pinv(gaussian)
        case.near(found, projector @ case.weight if case.rows <= case.columns else case.weight @ projector)
        case.near(
            dense(method(torch.tensor(found), keep=Keep(rank=rank), generator=torch.Generator().manual_seed(5))), found
        )


def check_noise(case: Case, method: Callable[..., AnyEdit]) -> None:
    found = dense(method(case.tensor, generator=torch.Generator().manual_seed(1), relative_error=0.3))
    case.near(numpy.linalg.norm(found - case.weight), 0.3 * case.norm)


def check_magnitude(case: Case, method: Callable[..., AnyEdit]) -> None:
    for density in (0.3, 0.5, 1.0):
        expected = case.weight.flatten()
        expected[
            numpy.argsort(numpy.abs(expected), kind="stable")[: int(numpy.floor((1 - density) * expected.size + 1e-9))]
        ] = 0
        numpy.testing.assert_array_equal(
            dense(method(case.tensor, density=density)), expected.reshape(case.weight.shape)
        )


def check_wanda(case: Case, method: Callable[..., AnyEdit]) -> None:
    size = numpy.sqrt((case.inputs**2).mean(1))
    for density in (0.3, 1.0):
        expected = case.weight.copy()
        for row in expected:
            row[
                numpy.argsort(numpy.abs(row) * size, kind="stable")[: int(numpy.floor((1 - density) * len(row) + 1e-9))]
            ] = 0
        numpy.testing.assert_array_equal(
            dense(method(case.tensor, input_second_moment_diagonal=torch.tensor(size**2), density=density)), expected
        )


def check_marchenko_pastur(case: Case, method: Callable[..., AnyEdit]) -> None:
    small, large = sorted(case.weight.shape)
    edge = (
        numpy.median(case.s)
        / numpy.sqrt(large * marchenko_pastur_median(small / large))
        * (numpy.sqrt(small) + numpy.sqrt(large))
    )
    edit = method(case.tensor, truncate=TRUNCATE)
    # The median of a matrix of deficient rank is rounding: how many components lie above it is chance, and all that
    # matter do.
    if edge > 1e-5 * case.norm or case.norm == 0:
        assert edit.rank == max(1, int((case.s > edge).sum()))
    else:
        assert edit.rank >= (case.s > 1e-5 * case.norm).sum()
    case.near(numpy.linalg.norm(case.weight - dense(edit)), case.dropped(edit.rank))


def check_scaled(case: Case, scale: numpy.ndarray, edit_at: Callable[[Keep], AnyEdit]) -> None:
    """The weighted distance is the best there is at this rank; columns of no weight count by the floor."""
    scale = numpy.maximum(scale / scale.max(), SCALE_FLOOR)
    singular_values = numpy.linalg.svd(case.weight * scale, compute_uv=False)
    for rank in case.ranks:
        edit = edit_at(Keep(rank=rank))
        assert edit.rank == rank
        case.near(
            numpy.linalg.norm((case.weight - dense(edit)) * scale),
            case.dropped(rank, singular_values),
            scale=max(float(numpy.linalg.norm(case.weight * scale)), 1e-2 * case.norm),
        )


def check_activation_aware_svd(case: Case, method: Callable[..., AnyEdit]) -> None:
    size = numpy.abs(case.inputs).mean(1)
    check_scaled(
        case,
        numpy.sqrt(size),
        lambda keep: method(case.tensor, input_magnitude=torch.tensor(size), truncate=TRUNCATE, keep=keep),
    )


def check_fisher_weighted_svd(case: Case, method: Callable[..., AnyEdit]) -> None:
    information = case.mean**2
    information[0] = 0.0
    if case.columns > 1:
        check_scaled(
            case,
            numpy.sqrt(information),
            lambda keep: method(
                case.tensor, fisher_information=torch.tensor(information), truncate=TRUNCATE, keep=keep
            ),
        )
    assert (
        method(
            case.tensor, fisher_information=torch.zeros(case.columns).double(), truncate=TRUNCATE, keep=Keep(rank=1)
        ).fallback
        == "unscaled"
    )


def check_feature_space(case: Case, method: Callable[..., AnyEdit]) -> None:
    moment = case.inputs @ case.inputs.T / case.inputs.shape[1]
    outputs = case.weight @ case.inputs
    size = float(numpy.linalg.norm(outputs))
    for rank in case.ranks:
        for centred in (True, False):
            about = outputs.mean(1, keepdims=True) if centred else 0.0
            edit = method(
                case.tensor,
                input_second_moment=torch.tensor(moment),
                input_mean_with_sinks=torch.tensor(case.mean),
                keep=Keep(rank=rank),
                centred=centred,
                bias=centred,
            )
            shift = edit.bias_shift.double().numpy()[:, None] if centred else 0.0
            best = case.dropped(rank, numpy.linalg.svd(outputs - about, compute_uv=False))
            case.near(numpy.linalg.norm(outputs - dense(edit) @ case.inputs - shift), best, scale=size)
            left = edit.left.double().numpy()
            numpy.testing.assert_allclose(left.T @ left, numpy.eye(rank), atol=1e-5)
            case.near(dense(edit), left @ left.T @ case.weight)


def check_anchored(case: Case, method: Callable[..., AnyEdit]) -> None:
    """Where nothing before was edited, it is the truncation of what the inputs and the ridge show."""
    moment = case.inputs @ case.inputs.T / case.inputs.shape[1]
    pull = 0.01 * float(numpy.diag(moment).mean())
    root = numpy.linalg.cholesky(moment + pull * numpy.eye(case.columns))
    values = numpy.linalg.svd(case.weight @ root, compute_uv=False)
    for rank in case.ranks:
        edit = method(
            case.tensor,
            input_second_moment=torch.tensor(moment),
            input_cross_moment=torch.tensor(moment),
            input_mean_with_sinks=torch.tensor(case.mean),
            original_input_mean=torch.tensor(case.mean),
            keep=Keep(rank=rank),
        )
        size = float(numpy.linalg.norm(values))
        case.near(numpy.linalg.norm((case.weight - dense(edit)) @ root), case.dropped(rank, values), scale=size)


def check_two_sided_svd(case: Case, method: Callable[..., AnyEdit]) -> None:
    gradients = numpy.random.default_rng(7).standard_normal((case.rows, 40))
    moments = [values @ values.T / values.shape[1] for values in (case.inputs, gradients)]
    roots = [
        numpy.linalg.cholesky((1 - share) * moment + share * numpy.trace(moment) / len(moment) * numpy.eye(len(moment)))
        for moment, share in zip(moments, (0.1, 0.3), strict=True)
    ]
    values = numpy.linalg.svd(roots[1].T @ case.weight @ roots[0], compute_uv=False)
    for rank in case.ranks:
        edit = method(
            case.tensor,
            input_second_moment=torch.tensor(moments[0]),
            gradient_second_moment=torch.tensor(moments[1]),
            keep=Keep(rank=rank),
        )
        lost = numpy.linalg.norm(roots[1].T @ (case.weight - dense(edit)) @ roots[0])
        case.near(lost, case.dropped(rank, values), scale=float(numpy.linalg.norm(values)))
    whole = method(
        case.tensor,
        batch_gradients=torch.tensor(gradients[None, :, :1] * case.inputs[:, 0]).float(),
        keep=Keep(rank=case.full),
        output="batches",
    )
    case.near(dense(whole), case.weight)


def check_pull_back(case: Case, method: Callable[..., AnyEdit]) -> None:
    """By least squares on the gradients: what of the way back they span."""
    draw = numpy.random.default_rng(5)
    original = case.weight + draw.standard_normal(case.weight.shape)
    gradients = 1e-5 * draw.standard_normal((3, *case.weight.shape))
    for directions, first in ((1, 0), (1, 4), (2, 2), (9, 1)):
        edit = method(
            case.tensor,
            original=torch.tensor(original),
            batch_gradients=torch.tensor(gradients).float(),
            directions=directions,
            first=first,
        )
        places = sorted({(first + step) % 3 for step in range(min(directions, 3))})
        spanning = gradients[places].reshape(len(places), -1).T
        solved = numpy.linalg.lstsq(spanning, (original - case.weight).ravel(), rcond=None)[0]
        wanted = case.weight + (spanning @ solved).reshape(case.weight.shape)
        assert edit.rank == case.full
        case.near(dense(edit), wanted, scale=float(numpy.linalg.norm(wanted)))
    still = method(case.tensor, original=torch.tensor(original), batch_gradients=torch.zeros(2, *case.weight.shape))
    case.near(dense(still), case.weight)


def check_restore(case: Case, method: Callable[..., AnyEdit]) -> None:
    edit = method(case.tensor, original=2 * case.tensor.double())
    assert edit.rank == case.full and edit.weight().dtype == torch.float32
    case.near(dense(edit), 2 * case.weight)


def check_mlp_select(case: Case, method: Callable[..., AnyEdit]) -> None:
    """The ridge as further tokens, and least squares of all outputs on the kept units."""
    tokens = numpy.hstack([case.inputs / numpy.sqrt(case.inputs.shape[1]), 0.1 * numpy.eye(case.columns)])
    halves = numpy.stack([case.inputs[:, start::2] @ case.inputs[:, start::2].T for start in (0, 1)])
    for ranking in ("leverage", "zca", "energy", "a3", "obs", "random"):
        edit = method(
            case.tensor,
            component=Component({"up_proj": case.tensor.T}, {}),
            input_second_moment_by_halves=torch.tensor(halves / case.inputs.shape[1]),
            generator=torch.Generator(),
            unit_fraction=0.6,
            ranking=ranking,
            refit=True,
        )
        (kept,) = edit.beside["up_proj"].values.any(1).numpy().nonzero()
        if case.norm == 0 or len(kept) < edit.columns:
            continue
        size = float(numpy.linalg.norm(case.weight @ tokens))
        best = numpy.linalg.lstsq(tokens[kept].T, (case.weight @ tokens).T, rcond=None)[0].T
        lost = case.weight @ tokens - best @ tokens[kept]
        found = case.weight @ tokens - dense(edit) @ tokens
        case.near(numpy.linalg.norm(found), numpy.linalg.norm(lost), scale=size)


def check_mix_values(case: Case, method: Callable[..., AnyEdit]) -> None:
    """One head that makes all inputs: the best of this rank for what is made of them."""
    moment = case.inputs @ case.inputs.T / case.inputs.shape[1]
    root = numpy.linalg.cholesky(moment + 1e-4 * numpy.diag(moment).mean() * numpy.eye(case.columns))
    edit = method(
        case.tensor,
        component=Component({"v_proj": torch.eye(case.columns)}, {}, Heads(1, 1, case.columns)),
        input_second_moment=torch.tensor(moment),
        generator=torch.Generator(),
        unit_fraction=0.6,
    )
    rank = max(1, int(0.6 * case.columns + 1e-9))
    values = numpy.linalg.svd(case.weight @ root, compute_uv=False)
    together = dense(edit) @ edit.beside["v_proj"].values.double().numpy()
    lost = numpy.linalg.norm((case.weight - together) @ root)
    case.near(lost, case.dropped(rank, values), scale=float(numpy.linalg.norm(values)))


def check_mix_unattended_values(case: Case, method: Callable[..., AnyEdit]) -> None:
    """One head, and weights that read it: the best of this rank for what is made of the inputs."""
    reads = numpy.random.default_rng(3).standard_normal((5, case.rows))
    values = case.weight @ case.inputs / numpy.sqrt(case.inputs.shape[1])
    moment = values @ values.T
    ridge = 1e-4 * numpy.diag(moment).mean()
    root = numpy.linalg.cholesky(moment + ridge * numpy.eye(case.rows)) if ridge > 0 else numpy.eye(case.rows)
    edit = method(
        case.tensor,
        component=Component({"o_proj": torch.tensor(reads)}, {}, Heads(1, 1, case.rows)),
        input_second_moment=torch.tensor(case.inputs @ case.inputs.T / case.inputs.shape[1]),
        input_mean_with_sinks=torch.tensor(case.mean),
        generator=torch.Generator(),
        unit_fraction=0.6,
    )
    rank = max(1, int(0.6 * case.rows + 1e-9))
    kept = edit.beside["o_proj"].values.double().numpy()
    assert edit.rows == rank and (rank == case.rows or not kept[:, rank:].any())
    spectrum = numpy.linalg.svd(reads @ root, compute_uv=False)
    lost = numpy.linalg.norm(
        (reads @ case.weight - kept @ dense(edit)) @ case.inputs / numpy.sqrt(case.inputs.shape[1])
    )
    assert lost <= case.dropped(rank, spectrum) + 1e-4 * float(numpy.linalg.norm(spectrum))


def check_nested_decomposition(case: Case, method: Callable[..., AnyEdit]) -> None:
    """Nearer to the weights than the first part alone, as near as there is with what the first part leaves."""
    moment = case.inputs @ case.inputs.T / case.inputs.shape[1]
    for rank in case.ranks:
        main = max(1, rank // 2)
        first, whole = (
            method(
                case.tensor,
                input_second_moment=torch.tensor(moment),
                truncate=TRUNCATE,
                keep=Keep(rank=kept),
                main_fraction=share,
            )
            for kept, share in ((main, 1.0), (rank, main / rank))
        )
        left = numpy.linalg.svd(case.weight - dense(first), compute_uv=False)
        assert whole.rank == rank
        case.near(numpy.linalg.norm(case.weight - dense(whole)), case.dropped(rank - main, left))


def check_policy_prune(case: Case, method: Callable[..., AnyEdit]) -> None:
    """Every other unit stays, of as many columns as divide the matrix; what feeds them keeps rows in the same way."""
    for width in {1, 2 if case.columns % 2 == 0 else case.columns, case.columns}:
        marks = numpy.arange(case.columns // width) % 2 == 0
        columns = numpy.repeat(marks, width)
        feeding, bias = case.weight[:1].T.repeat(3, 1), case.weight[0]
        component = Component({"up_proj": torch.tensor(feeding)}, {"up_proj": torch.tensor(bias)})
        edit = method(case.tensor, component=component, kept_units=torch.tensor(marks))
        beside = edit.beside["up_proj"]
        numpy.testing.assert_array_equal(dense(edit), case.tensor.double().numpy() * columns)
        numpy.testing.assert_array_equal(beside.values, feeding * columns[:, None])
        numpy.testing.assert_array_equal(beside.bias, bias * columns)
        assert (edit.columns, beside.rows, edit.unchanged) == (columns.sum(), columns.sum(), bool(marks.all()))


def check_select_coordinates(case: Case, method: Callable[..., AnyEdit]) -> None:
    """One head, its queries made by other weights: the largest products of squares stay as they are."""
    queries = numpy.random.default_rng(2).standard_normal((case.rows, case.columns))
    bias = numpy.random.default_rng(3).standard_normal(case.rows)
    edit = method(
        case.tensor,
        component=Component({"q_proj": torch.tensor(queries)}, {"k_proj": torch.tensor(bias)}, Heads(1, 1, case.rows)),
        input_second_moment=torch.tensor(case.inputs @ case.inputs.T / case.inputs.shape[1]),
        input_mean_with_sinks=torch.tensor(case.mean),
        generator=torch.Generator(),
        unit_fraction=0.6,
    )
    keys = case.weight @ case.inputs + bias[:, None]
    sizes = (keys**2).mean(1) * ((queries @ case.inputs) ** 2).mean(1)
    count = max(1, int(0.6 * case.rows + 1e-9))
    kept = numpy.zeros(case.rows, dtype=bool)
    kept[numpy.argsort(-sizes, kind="stable")[:count]] = True
    if len(set(sizes)) == case.rows:
        numpy.testing.assert_array_equal(dense(edit), case.weight * kept[:, None])
        numpy.testing.assert_array_equal(edit.beside["q_proj"].values, queries * kept[:, None])
        numpy.testing.assert_array_equal(edit.bias, bias * kept)
        assert edit.rows == kept.sum()


def check_mix_scores(case: Case, method: Callable[..., AnyEdit]) -> None:
    """One head, its queries made by other weights: no further from the scores than the SVD of the scores."""
    queries = numpy.random.default_rng(2).standard_normal((case.rows, case.columns))
    edit = method(
        case.tensor,
        component=Component({"q_proj": torch.tensor(queries)}, {}, Heads(1, 1, case.rows)),
        input_second_moment=torch.tensor(case.inputs @ case.inputs.T / case.inputs.shape[1]),
        input_mean_with_sinks=torch.tensor(case.mean),
        generator=torch.Generator(),
        unit_fraction=0.6,
        ridge=1e-9,
    )
    rank = max(1, int(0.6 * case.rows + 1e-9))
    asked, kept = queries @ case.inputs, edit.beside["q_proj"].values.double().numpy()
    assert edit.rows == rank and (rank == case.rows or not kept[rank:].any())
    scores = asked.T @ case.weight @ case.inputs
    spectrum = numpy.linalg.svd(scores, compute_uv=False)
    lost = numpy.linalg.norm(scores - (kept @ case.inputs).T @ dense(edit) @ case.inputs)
    assert lost <= case.dropped(rank, spectrum) + 1e-4 * float(numpy.linalg.norm(spectrum))


def check_pruning(case: Case, drop: Callable[[float], AnyEdit], fraction: float) -> None:
    marks = numpy.zeros(case.full, dtype=bool)
    marks[numpy.argsort(case.effects)[: int(fraction * case.full + 1e-9)]] = True
    edit = drop(fraction)
    assert edit.rank == case.full - marks.sum()
    case.near(dense(edit), case.weight - case.without(marks))
    case.near(edit.bias_shift, case.without(marks) @ case.mean, scale=case.norm * float(numpy.linalg.norm(case.mean)))


def check_eigenprune(case: Case, method: Callable[..., AnyEdit]) -> None:
    for fraction in (0.2, 0.6):
        check_pruning(
            case,
            lambda share: method(
                case.tensor,
                svd=case.svd,
                counterfactual_effects=torch.tensor(case.effects),
                input_mean=torch.tensor(case.mean),
                fraction=share,
            ),
            fraction,
        )


def check_ablation_prune(case: Case, method: Callable[..., AnyEdit]) -> None:
    for fraction in (0.2, 0.6):
        check_pruning(
            case,
            lambda share: method(
                case.tensor,
                svd=case.svd,
                ablation_effects=torch.tensor(case.effects),
                input_mean=torch.tensor(case.mean),
                fraction=share,
            ),
            fraction,
        )


def check_eigenprune_greedy(case: Case, method: Callable[..., AnyEdit]) -> None:
    for marks in (case.effects < 0, numpy.ones(case.full, dtype=bool), numpy.zeros(case.full, dtype=bool)):
        edit = method(
            case.tensor, svd=case.svd, removed_components=torch.tensor(marks), input_mean=torch.tensor(case.mean)
        )
        case.near(dense(edit), case.weight - case.without(marks))
        case.near(
            edit.bias_shift, case.without(marks) @ case.mean, scale=case.norm * float(numpy.linalg.norm(case.mean))
        )


def check_contrast_projection(case: Case, method: Callable[..., AnyEdit]) -> None:
    differences = (case.inputs[:, 0::2] - case.inputs[:, 1::2]).T
    given = {"contrast_differences": torch.tensor(differences), "input_mean": torch.tensor(case.mean)}
    if case.full == 1:
        with pytest.raises(UserError, match="cannot be taken out of a"):
            method(case.tensor, **given)
        return
    edit = method(case.tensor, **given)
    if case.norm == 0:
        assert edit.fallback == NO_DIFFERENCE and edit.bias_shift is None and not edit.weight().any()
        return
    direction = numpy.linalg.svd(differences @ case.weight.T)[2][:1]
    case.near(dense(edit), case.weight - direction.T @ direction @ case.weight)
    case.near(
        edit.bias_shift,
        direction.T @ direction @ case.weight @ case.mean,
        scale=case.norm * float(numpy.linalg.norm(case.mean)),
    )
    case.near(direction @ dense(edit), 0)


def check_basis_selection(case: Case, method: Callable[..., AnyEdit]) -> None:
    """Training is tested by itself; here it left every component and some more, or fewer, on factors that split the
    singular values evenly.
    """
    more = numpy.random.default_rng(1).standard_normal((2, max(case.rows, case.columns)))
    for rank in case.ranks:
        left, right = case.u[:, :rank] * numpy.sqrt(case.s[:rank]), numpy.sqrt(case.s[:rank])[:, None] * case.vh[:rank]
        for factors in (
            (left, right),
            (numpy.hstack([left, case.norm * more[:, : case.rows].T]), numpy.vstack([right, more[:, : case.columns]])),
        ):
            edit = method(
                case.tensor,
                trained_left=torch.tensor(factors[0]).float(),
                trained_right=torch.tensor(factors[1]).float(),
            )
            assert edit.rank == min(case.full, factors[0].shape[1])
            case.near(
                dense(edit),
                factors[0] @ factors[1],
                scale=max(case.norm, float(numpy.linalg.norm(factors[0] @ factors[1]))),
            )


def check_basis_sharing(case: Case, method: Callable[..., AnyEdit]) -> None:
    """Two matrices, the case and its double with another sign: what is lost of the two on their inputs is what the
    truncation of both as one loses.
    """
    from harness_ext.methods.basis_sharing import refitted_together, shared_basis

    moment = case.inputs @ case.inputs.T / case.inputs.shape[1]
    weights, moments = [case.tensor, -2 * case.tensor], [torch.tensor(moment), torch.tensor(moment)]
    outputs = numpy.vstack([case.weight, -2 * case.weight]) @ case.inputs
    values = numpy.linalg.svd(outputs, compute_uv=False)
    for rank in case.ranks:
        for refit in ("none", "layer", "group"):
            found = shared_basis(weights, moments, Keep(rank=rank), refit)
            if refit == "group":
                found = refitted_together(found, weights, moments)
            edits = [
                method(
                    weight,
                    input_second_moment=moments[0],
                    shared_left=left,
                    shared_right=found.right,
                    shared_place=torch.tensor([place, 2]),
                    keep=Keep(rank=rank),
                    refit=refit,
                )
                for place, (weight, left) in enumerate(zip(weights, found.lefts, strict=True))
            ]
            lost = outputs - numpy.vstack([dense(edit) for edit in edits]) @ case.inputs
            case.near(numpy.linalg.norm(lost), case.dropped(rank, values), scale=float(numpy.linalg.norm(outputs)))


def check_sola(case: Case, method: Callable[..., AnyEdit]) -> None:
    """Every third row prime, every third column, or none: what is lost of outputs is what truncation loses of the rest
    by itself, and what is prime stays.
    """
    moment = case.inputs @ case.inputs.T / case.inputs.shape[1]
    rows, columns, none = numpy.arange(case.rows) % 3 == 1, numpy.arange(case.columns) % 3 == 1, numpy.zeros((1, 1))
    for mask in (rows[:, None], columns[None], none):
        prime = numpy.broadcast_to(mask > 0, case.weight.shape)
        light = (case.rows - int(rows.sum()) * (mask.shape == (case.rows, 1)), case.columns)
        if mask.any() and mask.shape[0] == 1:
            light = (case.rows, case.columns - int(columns.sum()))
        outputs = numpy.where(prime, 0, case.weight) @ case.inputs
        values = numpy.linalg.svd(outputs, compute_uv=False)
        for rank in {1, (min(light) + 1) // 2, min(light)}:
            edit = method(
                case.tensor,
                input_second_moment=torch.tensor(moment),
                prime_units=torch.tensor(mask > 0),
                keep=Keep(rank=rank),
            )
            assert edit.rank == min(case.full, rank + sum(case.weight.shape) - sum(light))
            case.near(numpy.where(prime, dense(edit) - case.weight, 0), 0)
            lost = outputs - numpy.where(prime, 0, dense(edit)) @ case.inputs
            case.near(numpy.linalg.norm(lost), case.dropped(rank, values), scale=float(numpy.linalg.norm(outputs)))


def check_heal(case: Case, method: Callable[..., AnyEdit]) -> None:
    """Training is tested by itself; here it left factors that split the singular values evenly, and added nothing."""
    for rank in case.ranks:
        left, right = case.u[:, :rank] * numpy.sqrt(case.s[:rank]), numpy.sqrt(case.s[:rank])[:, None] * case.vh[:rank]
        edits = [
            method(
                case.tensor,
                healed_left=torch.tensor(left * scale).float(),
                healed_right=torch.tensor(right).float(),
                healed_adds=torch.tensor(adds),
            )
            for scale, adds in ((1, False), (0, True))
        ]
        assert [edit.rank for edit in edits] == [rank, case.full]
        case.near(dense(edits[0]), left @ right)
        case.near(dense(edits[1]), case.weight)


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in globals().items()
    if name.startswith("check_") and name.removeprefix("check_") in registered_methods()
}


def test_every_method_has_a_check() -> None:
    ours = {
        name for name, method in registered_methods().items() if method.function.__module__.startswith("harness_ext.")
    }
    assert set(CHECKS) == ours


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("method", CHECKS)
def test_a_method_on_a_matrix(method: str, matrix: str) -> None:
    CHECKS[method](Case(matrix), registered_methods()[method].function)


@pytest.mark.parametrize("method", CHECKS)
def test_a_method_says_whether_it_moves_a_bias(method: str) -> None:
    """By the declaration experts are kept from what they cannot take."""
    described, case = registered_methods()[method], Case("random")
    components = {
        "mlp": Component({"up_proj": case.tensor.T}, {}),
        "units": Component({"up_proj": case.tensor.T}, {}),
        "values": Component({"v_proj": case.tensor.T}, {}, Heads(1, 1, 13)),
        "scores": Component({"q_proj": case.tensor}, {}, Heads(1, 1, 9)),
        "unattended": Component({"o_proj": case.tensor.T}, {}, Heads(1, 1, 9)),
        None: None,
    }
    statistics = {
        "svd": case.svd,
        "truncate": TRUNCATE,
        "remember": call,
        "keep": Keep(rank=2),
        "generator": torch.Generator().manual_seed(0),
        "input_mean": torch.tensor(case.mean),
        "input_mean_with_sinks": torch.tensor(case.mean),
        "original_input_mean": torch.tensor(case.mean),
        "input_cross_moment": torch.eye(13),
        "gradient_second_moment": torch.eye(9),
        "batch_gradients": torch.ones(2, 9, 13),
        "original": case.tensor,
        "component": components[described.component],
        "input_second_moment_by_halves": torch.stack([torch.eye(13), torch.eye(13)]),
        "far_input_mean": torch.zeros(13),
        "input_magnitude": torch.ones(13),
        "removed_components": torch.arange(9) < 3,
        "accepted_components": torch.arange(9) < 3,
        "count_among_all": torch.tensor(3),
        "kept_units": torch.arange(13) < 3,
        "input_second_moment": torch.tensor(case.inputs @ case.inputs.T),
        "input_second_moment_diagonal": torch.ones(13),
        "fisher_information": torch.ones(13),
        "counterfactual_effects": torch.tensor(case.effects),
        "ablation_effects": torch.tensor(case.effects),
        "contrast_differences": torch.tensor(case.inputs.T[:6]),
        "trained_left": torch.ones(9, 2),
        "trained_right": torch.ones(2, 13),
        "healed_left": torch.ones(9, 2),
        "healed_right": torch.ones(2, 13),
        "healed_adds": torch.tensor(False),
        "shared_left": torch.ones(9, 2),
        "shared_right": torch.ones(2, 13),
        "shared_place": torch.tensor([0, 2]),
        "prime_units": torch.arange(9)[:, None] < 2,
    }
    given = {name: statistics[name] for name in described.engine_arguments}
    for settings in [{"bias": True}, {"bias": False}] if "bias" in described.parameters else [{}]:
        assert (described.function(case.tensor, **given, **settings).bias_shift is not None) == described.moves_bias(
            settings
        )
