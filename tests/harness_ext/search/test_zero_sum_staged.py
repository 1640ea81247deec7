"""Zero-sum in stages against a plain loop written from the released way: Cholesky, whole gradients, one text."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from harness_ext.calibration.cache import StatisticsCache
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.editing.controls import RANDOM_SUBSPACE, control_recipe
from harness_ext.editing.edit_stored import needs_a_model
from harness_ext.errors import BudgetTooSmall, UserError
from harness_ext.methods import feature_space
from harness_ext.methods.feature_space import spanned
from harness_ext.model.weights import model_digest
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.search import zero_sum, zero_sum_staged
from harness_ext.search.zero_sum import allotted, least_rank
from tests.harness_ext.search.plain_search import documents_for, drawing
from tests.harness_ext.search.test_allocate_ranks import inputs_of
from tests.harness_ext.search.test_searches import gradients_of

SOME = "matrices=[o_proj,k_proj]"
RIDGE = 0.01


def plain(lm: Any, count: int = 40) -> list[LabelledDocument]:
    return [LabelledDocument(one.task, one.context, one.answer, one.doc_hash) for one in documents_for(lm, count)]


class PlainStages:
    """The loop, in float64. ranks: of the matrices cut in each stage."""

    def __init__(self, lm: Any, documents: list[LabelledDocument], matrices: Any) -> None:
        self.lm, self.documents, self.matrices = lm, documents, matrices
        self.original = {one.key: lm.weights.read(one).double().numpy() for one in matrices}
        self.ranks: list[dict[str, int]] = []

    def run(self, stages: int, share: float, min_fraction: float) -> dict[str, numpy.ndarray]:
        shapes = {one.key: one.shape for one in self.matrices}
        floors = {key: least_rank(shape, min_fraction) for key, shape in shapes.items()}
        standing = dict(self.original)
        for stage in range(stages):
            if stage:
                self.correct(standing, self.documents[stage - 1 :: 16])
            whitened = self.whitened(standing)
            effects = {
                # Directions of no size have an effect of none; what is computed is rounding.
                key: [-float(one) for one in numpy.where(s > s[0] * (len(s) * 1e-15) ** 0.5, s * slopes, 0.0)]
                for key, (_, s, _, slopes) in whitened.items()
            }
            ranks = allotted(shapes, effects, share, floors)
            self.ranks.append(ranks)
            for key in standing:
                u, s, right, _ = whitened[key]
                rank = ranks.get(key, 0)
                standing[key] = (u[:, :rank] * s[:rank]) @ right[:rank] if rank else self.original[key]
            self.put(standing)
        self.lm.weights.restore()
        return standing

    def put(self, standing: dict[str, numpy.ndarray]) -> None:
        for one in self.matrices:
            self.lm.weights.replace(one, torch.tensor(standing[one.key]))

    def whitened(self, standing: dict[str, numpy.ndarray]) -> dict[str, tuple[numpy.ndarray, ...]]:
        """u, s and `v^T S^-1` of `W S`, and the loss's slope in each s."""
        gradients = gradients_of(self.lm, self.documents, self.matrices)
        found = {}
        for one in self.matrices:
            x = inputs_of(self.lm, one.module, self.documents)
            cholesky = numpy.linalg.cholesky(x.T @ x / len(x) + RIDGE * numpy.eye(x.shape[1]))
            u, s, vh = numpy.linalg.svd(standing[one.key] @ cholesky, full_matrices=False)
            turned = gradients[one.key].numpy() @ numpy.linalg.inv(cholesky).T
            found[one.key] = (u, s, vh @ numpy.linalg.inv(cholesky), numpy.einsum("mi,mn,in->i", u, turned, vh))
        return found

    def correct(self, standing: dict[str, numpy.ndarray], texts: list[LabelledDocument]) -> None:
        """`W + (<g, D> / <g, g>) g`, D the way back to the original."""
        cut = [one for one in self.matrices if one.key in self.ranks[-1]]
        for key, gradient in gradients_of(self.lm, texts, cut).items():
            g, away = gradient.numpy(), self.original[key] - standing[key]
            standing[key] = standing[key] + (g * away).sum() / (g * g).sum() * g
        self.put(standing)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "least"), [(0.6, 0.3), (0.85, 0.1)])
def test_stages_are_those_of_a_plain_loop(make_lm: Any, share: float, least: float) -> None:
    lm = make_lm("llama", dtype="float64")
    documents, digest = plain(lm), model_digest(lm.model)
    settings = f"param_fraction={share},min_fraction={least},ridge={RIDGE},stages=3"
    recipe = parse_recipe(f"zero-sum-staged:{SOME},{settings}")
    matrices = lm.weights.layout.select(recipe.steps[0])
    loop = PlainStages(lm, documents, matrices)
    wanted = loop.run(3, share, least)
    assert model_digest(lm.model) == digest
    applied = lm.apply(recipe, drawing(documents))
    (record,) = applied.searches
    steps = record["chosen"]
    assert [step["keep"]["ranks"] for step in steps if step["method"] == "feature_space"] == loop.ranks
    pulls = [step for step in steps if step["method"] == "pull_back"]
    assert [(step["first"], set(step["matrices"])) for step in pulls] == [
        (stage, set(ranks)) for stage, ranks in enumerate(loop.ranks[:2])
    ]
    back = [set(step["matrices"]) for step in steps if step["method"] == "restore"]
    assert back == [one.keys() - two.keys() for one, two in zip(loop.ranks, loop.ranks[1:]) if one.keys() - two.keys()]
    for matrix in matrices:
        found = lm.weights.read(matrix).double().numpy()
        size = numpy.linalg.norm(wanted[matrix.key])
        assert numpy.linalg.norm(found - wanted[matrix.key]) < 1e-3 * size, matrix.key
    lm.undo()
    assert model_digest(lm.model) == digest
    # The one trial is of the last stage, and what is stored is counted by it.
    (trial,) = record["trials"]
    assert trial["accepted"] and trial["keep"]["ranks"] == loop.ranks[-1]
    assert record["notes"][0].startswith("the predicted change of the loss at the last of 3 stages is ")
    assert record["notes"][1].startswith("from the first stage to the last: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero-sum", "zero-sum-staged:stages=2"])
def test_rounding_of_directions_of_no_size_decides_nothing(
    make_lm: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another CPU turns them among each other, and rounds their sizes otherwise. Few tokens leave some from the
    beginning.
    """
    lm, found, predicted, null = make_lm("llama"), [], [], 0

    def noting(shapes: Any, effects: Any, *settings: Any) -> dict[str, int]:
        predicted[-1] += [effect for own in effects.values() for effect in own]
        return allotted(shapes, effects, *settings)

    for module in (zero_sum, zero_sum_staged):
        monkeypatch.setattr(module, "allotted", noting)
    for seed in range(4):
        draw, own = torch.Generator().manual_seed(seed), feature_space.output_spectrum

        def elsewhere(weight: torch.Tensor, spread: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal null
            values, vectors = own(weight, spread)  # noqa: B023 - called at once
            count = len(values) - spanned(values)
            null += count
            turned = torch.linalg.qr(torch.randn(count, count, generator=draw, dtype=values.dtype)).Q  # noqa: B023
            values[len(values) - count :] *= torch.rand(count, generator=draw, dtype=values.dtype)  # noqa: B023
            return values, torch.cat([vectors[:, : len(values) - count], vectors[:, len(values) - count :] @ turned], 1)

        predicted.append([])
        with monkeypatch.context() as patched:
            patched.setattr(feature_space, "output_spectrum", elsewhere)
            head, _, more = name.partition(":")
            settings = ",".join(filter(None, [more, SOME, "param_fraction=0.5"]))
            found.append(lm.apply(parse_recipe(f"{head}:{settings}"), drawing(plain(lm, 3))).searches[0]["chosen"])
        lm.undo()
        lm._statistics_cache = StatisticsCache(lm.weights._scratch, limit_bytes=0)
    assert null and found[0] and all(one == found[0] for one in found)
    assert predicted[0].count(0.0) and all(numpy.allclose(one, predicted[0], rtol=1e-2, atol=0) for one in predicted)


def test_what_a_stage_leaves_dense_is_the_original_again(make_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("llama")
    recipe = parse_recipe(f"zero-sum-staged:{SOME},stages=3")
    first, second, *_ = (matrix.key for matrix in lm.weights.layout.select(recipe.steps[0]))
    ranks = iter([{first: 3, second: 2}, {second: 2}, {first: 4, second: 3}])
    monkeypatch.setattr(zero_sum_staged, "allotted", lambda *_: next(ranks))
    applied = lm.apply(recipe, drawing(plain(lm, 8)))
    steps = applied.searches[0]["chosen"]
    assert [(step["method"], step["matrices"]) for step in steps] == [
        ("feature_space", [first, second]),
        ("pull_back", [first, second]),
        ("feature_space", [second]),
        ("restore", [first]),
        ("pull_back", [second]),
        ("feature_space", [first, second]),
    ]
    (back,) = [record for record in applied.records if record.method == "restore"]
    (cut, pulled) = [record for record in applied.records if record.name == back.name][:2]
    assert back.digest_after == cut.digest_before != pulled.digest_after and back.rank_after == back.rank_before
    lm.undo()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_stages_in_other_dtypes_and_as_factors(make_lm: Any, dtype: str) -> None:
    lm = make_lm("llama", dtype=dtype)
    digest = model_digest(lm.model)
    applied = lm.apply(
        parse_recipe(f"zero-sum-staged:{SOME},param_fraction=0.5,stages=2,factored=always"), drawing(plain(lm, 8))
    )
    last = {record.name: record for record in applied.records}
    assert sum(one.parameters_after for one in last.values()) <= 0.5 * sum(
        one.shape[0] * one.shape[1] for one in applied.records if one.step == 0 and one is last[one.name]
    )
    assert {one.stored for one in last.values()} == {"factors"}
    lm.undo()
    assert model_digest(lm.model) == digest


def test_what_an_earlier_step_edited_cannot_be_pulled_back(make_lm: Any, tmp_path: Any) -> None:
    lm = make_lm("llama")
    (tmp_path / "two.yaml").write_text(
        "name: two\nsummary: Two.\nsource: ours\nsteps:\n"
        "  - {method: truncate_svd, matrices: [k_proj], keep: {rank: 4}}\n"
        "  - {method: zero_sum_staged, matrices: [o_proj, k_proj]}\n"
    )
    with pytest.raises(UserError, match=r"k_proj.weight was edited by an earlier step, and stages pull matrices back"):
        lm.apply(parse_recipe(str(tmp_path / "two.yaml")), drawing(plain(lm, 4)))
    lm.undo()


def test_a_budget_of_everything_finds_nothing(make_lm: Any) -> None:
    lm = make_lm("llama")
    (record,) = lm.apply(
        parse_recipe(f"zero-sum-staged:{SOME},param_fraction=1.0,stages=2"), drawing(plain(lm, 4))
    ).searches
    assert record["chosen"] == [] and "asks for no smaller matrix" in record["reason"]
    with pytest.raises(BudgetTooSmall, match="min_fraction leaves"):
        lm.apply(parse_recipe(f"zero-sum-staged:{SOME},param_fraction=0.3,min_fraction=0.6"), drawing(plain(lm, 4)))


def test_its_control_leaves_out_what_was_put_back() -> None:
    rows = [
        {"step": 0, "name": name, "rank_before": 8, "rank_after": rank}
        for name, rank in (("a", 3), ("b", 2), ("a", 8), ("b", 8), ("a", 8), ("b", 4))
    ]
    receipt = {"matrices": rows, "searches": [{"step": 0, "trials": [{}]}]}
    control = control_recipe(RANDOM_SUBSPACE, parse_recipe("zero-sum-staged"), receipt)
    assert control.steps[0].parameters["instead_of"] == {"b": 4}


def test_originals_are_not_in_files_of_weights(tmp_path: Any) -> None:
    (tmp_path / "back.yaml").write_text(
        "name: back\nsummary: Back.\nsource: ours\nsteps: [{method: restore, matrices: [k_proj]}]\n"
    )
    reason = needs_a_model(parse_recipe(str(tmp_path / "back.yaml")))
    assert reason is not None and "goes by the unedited weights" in reason
