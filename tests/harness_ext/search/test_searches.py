"""Searches against plain loops written here from their definitions."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch

from harness_ext.calibration.documents import LabelledDocument
from harness_ext.editing.warnings import receipt_warnings
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.model.weights import model_digest
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.search.zero_sum import allotted
from tests.harness_ext.search.plain_search import (
    FRACTIONS,
    GRID,
    accuracy_and_loss,
    documents_for,
    drawing,
    read_all,
    scored,
    svd_of,
)


def truncated(lm, matrix, rank: int) -> torch.Tensor:
    svd = svd_of(lm)(matrix)
    return (svd.u[:, :rank] * svd.s[:rank]) @ svd.vh[:rank]


def rank_of(matrix, fraction: float) -> int:
    return max(1, int(fraction * min(matrix.shape) + 1e-9))


def found_by(lm, specification: str, documents) -> list[dict]:
    digest = model_digest(lm.model)
    applied = lm.apply(parse_recipe(specification), drawing(documents))
    (record,) = applied.searches
    lm.undo()
    assert model_digest(lm.model) == digest
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in lm.model.modules()
    )
    return record["chosen"]


# Winners.


def plain_laser_search(lm, documents, matrices, fractions=FRACTIONS) -> tuple[str, float] | None:
    tried = []
    for matrix in matrices:
        for fraction in fractions:
            lm.weights.replace(matrix, truncated(lm, matrix, rank_of(matrix, fraction)))
            correct, loss = scored(lm, documents)
            lm.weights.restore()
            tried.append((-correct, loss, matrix.key, fraction))
    return best_of_those_no_worse(lm, documents, tried)


def best_of_those_no_worse(lm, documents, tried: list[tuple]) -> tuple | None:
    """What follows `(-correct, loss` in the best of those tried; None where all are worse than the model as it is."""
    correct, loss = scored(lm, documents)
    fit = [trial for trial in tried if -trial[0] >= correct and trial[1] <= loss]
    return min(fit, key=lambda trial: trial[:2])[2:] if fit else None


def hard_documents(lm) -> list[LabelledDocument]:
    """All of them answered otherwise by the model, so that edits can help."""
    return documents_for(lm, 40)[::2]


def easy_documents(lm) -> list[LabelledDocument]:
    """All of them answered so by the model, so that edits can add no right answer."""
    return documents_for(lm)[1::4]


@pytest.mark.slow
def test_laser_search_finds_what_a_plain_loop_finds(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    documents = documents_for(lm)
    step = parse_recipe(f"laser-search:{GRID}").steps[0]
    expected = plain_laser_search(lm, documents, lm.weights.layout.select(step))
    assert expected is not None
    (chosen,) = found_by(lm, f"laser-search:{GRID}", documents)
    assert (chosen["matrices"], chosen["keep"]) == ([expected[0]], {"rank_fraction": expected[1]})


def test_laser_search_finds_nothing_where_a_plain_loop_finds_nothing(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    documents = easy_documents(lm)
    assert scored(lm, documents)[0] == len(documents) == 4
    # At a larger fraction some edit makes the model surer of these answers.
    recipe = "laser-search:fractions=[0.2,0.05]"
    matrices = lm.weights.layout.select(parse_recipe(recipe).steps[0])
    assert plain_laser_search(lm, documents, matrices, [0.2, 0.05]) is None
    assert found_by(lm, recipe, documents) == []


def plain_laser_compose(lm, documents, matrices) -> list[tuple[str, float]]:
    (best, lowest), standing = scored(lm, documents), {}
    originals = {
        matrix.key: {fraction: truncated(lm, matrix, rank_of(matrix, fraction)) for fraction in FRACTIONS}
        for matrix in matrices
    }
    for matrix in reversed(matrices):
        for fraction in sorted(FRACTIONS):
            trial = {**standing, matrix.key: fraction}
            for other in matrices:
                if other.key in trial:
                    lm.weights.replace(other, originals[other.key][trial[other.key]])
            correct, loss = scored(lm, documents)
            lm.weights.restore()
            if correct > best and loss <= lowest:
                best, lowest, standing = correct, loss, trial
    return list(standing.items())


@pytest.mark.slow
def test_laser_compose_finds_what_a_plain_loop_finds(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    documents = hard_documents(lm)
    matrices = lm.weights.layout.select(parse_recipe(f"laser-compose:{GRID}").steps[0])
    expected = plain_laser_compose(lm, documents, matrices)
    chosen = found_by(lm, f"laser-compose:{GRID}", documents)
    assert expected and [(step["matrices"][0], step["keep"]["rank_fraction"]) for step in chosen] == expected
    documents = easy_documents(lm)
    assert found_by(lm, f"laser-compose:{GRID}", documents) == plain_laser_compose(lm, documents, matrices) == []


@pytest.mark.slow
def test_laser_search_on_the_embedded_model(demo_lm) -> None:
    lm, documents = demo_lm
    step = parse_recipe(f"laser-search:{GRID}").steps[0]
    expected = plain_laser_search(lm, documents, lm.weights.layout.select(step))
    assert expected is not None
    (chosen,) = found_by(lm, f"laser-search:{GRID}", documents)
    assert (chosen["matrices"], chosen["keep"]) == ([expected[0]], {"rank_fraction": expected[1]})


@pytest.fixture(scope="module")
def demo_lm():
    from harness_ext.calibration.documents import PromptSettings, draw_documents
    from harness_ext.demo import demo_path
    from harness_ext.lm_eval_adapter.task_index import task_manager
    from harness_ext.recipe.settings import Calibration

    tasks = task_manager().load(["int_mult"])["tasks"]
    (drawn,) = draw_documents(Calibration(task=("int_mult",), samples=24), tasks, set(), PromptSettings())
    return RecipeLM(str(demo_path()), device="cpu"), list(drawn.documents)


def gradients_of(lm, documents, matrices) -> dict[str, torch.Tensor]:
    """`dL/dW [m, n]` of each matrix, L the mean over documents of their loss, by ordinary backpropagation, one document
    at a time.
    """
    from torch.nn.functional import cross_entropy

    total = {matrix.key: 0.0 for matrix in matrices}
    for document in documents:
        context, answer = lm._encode_pair(document.context, document.answer)
        lm.model.zero_grad()
        logits = lm.model(torch.tensor([(context + answer)[:-1]])).logits[0, -len(answer) :]
        cross_entropy(logits, torch.tensor(answer)).backward()
        for matrix in matrices:
            gradient = lm.model.get_parameter(matrix.parameter).grad
            total[matrix.key] = total[matrix.key] + (
                gradient.T if matrix.stored_transposed else gradient
            ).double() / len(documents)
    lm.model.zero_grad(set_to_none=True)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("refined", [1, 2])
@pytest.mark.parametrize("finds", [True, False])
def test_laser_gradient_finds_what_a_plain_loop_finds(make_lm, plain_family: str, finds: bool, refined: int) -> None:
    lm = make_lm(plain_family)
    documents = hard_documents(lm) if finds else documents_for(lm)
    recipe = f"laser-gradient:{GRID},matrices=[mlp],top=2,clusters=[1,2,3],beyond=0.1,refined={refined}"
    matrices = lm.weights.layout.select(parse_recipe(recipe).steps[0])
    worth = {}
    for key, gradient in gradients_of(lm, documents, matrices).items():
        (matrix,) = [matrix for matrix in matrices if matrix.key == key]
        u, s, vh = numpy.linalg.svd(lm.weights.read(matrix).double().numpy(), full_matrices=False)
        per_value = numpy.einsum("mi,mn,in->i", u, gradient.numpy(), vh)
        worth[key] = float((s * per_value.clip(min=0))[max(1, int(0.1 * len(s))) :].sum())
    promising = sorted(worth, key=lambda key: -worth[key])[:2]
    tried = []

    def try_in(keys, counts) -> None:
        for matrix, count, fraction in itertools.product(
            [matrix for matrix in matrices if matrix.key in keys], counts, FRACTIONS
        ):
            weight = lm.weights.read(matrix)
            parts = []
            for block in numpy.array_split(weight.numpy(), count):
                u, s, vh = numpy.linalg.svd(block, full_matrices=False)
                rank = max(1, int(fraction * len(s) + 1e-9))
                parts.append((u[:, :rank] * s[:rank]) @ vh[:rank])
            lm.weights.replace(matrix, torch.from_numpy(numpy.concatenate(parts)))
            correct, loss = scored(lm, documents)
            lm.weights.restore()
            tried.append((-correct, loss, matrix.key, count, fraction))

    try_in(promising, (1,))
    before = scored(lm, documents)
    fit = [trial for trial in tried if -trial[0] >= before[0] and trial[1] <= before[1]]
    best_first = list(dict.fromkeys([*(trial[2] for trial in sorted(fit, key=lambda trial: trial[:2])), *promising]))
    try_in(best_first[:refined], (2, 3))
    expected = best_of_those_no_worse(lm, documents, tried)
    assert (expected is not None) is finds
    chosen = [
        (*step["matrices"], step.get("clusters", 1), step["keep"]["rank_fraction"])
        for step in found_by(lm, recipe, documents)
    ]
    assert chosen == ([expected] if finds else [])


def plain_surgical(lm, documents, matrices, ranks, accepts) -> dict[str, int]:
    """The moments by a hook on each linear layer, one document at a time; the edit from its formula; `accepts(index,
    scores by rank)` says which rank, if any.
    """
    inputs: dict[str, list] = {matrix.key: [] for matrix in matrices}
    handles = [
        lm.model.get_submodule(matrix.module).register_forward_hook(
            lambda module, args, output, key=matrix.key: inputs[key].append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for matrix in matrices
    ]
    read_all(lm, documents, handles)
    taken: dict[str, int] = {}
    edits: dict[str, tuple] = {}
    for index in range(len(matrices) - 1, -1, -1):
        matrix = matrices[index]
        x = torch.cat(inputs[matrix.key]).double()
        weight = lm.weights.read(matrix).double()
        y = x @ weight.T
        _, vectors = torch.linalg.eigh(torch.cov(y.T, correction=0))
        tries = {}
        for rank in ranks(matrix):
            top = vectors[:, -rank:]
            edit = (matrix, (top @ top.T @ weight).float(), (y.mean(0) - top @ top.T @ y.mean(0)).float())
            tries[rank] = edit
        results = {}
        for rank, edit in tries.items():
            for one, new, shift in [*edits.values(), edit]:
                lm.weights.replace(one, new)
                lm.weights.shift_bias(one, shift)
            results[rank] = accuracy_and_loss(lm, documents)
            lm.weights.restore()
        rank = accepts(index, results)
        if rank is not None:
            taken[matrix.key], edits[matrix.key] = rank, tries[rank]
    return taken


def surgical_ranks(matrix) -> list[int]:
    rows, columns = matrix.shape
    even = rows * columns // (rows + columns)
    return sorted({1, *(int(share * even) for share in (0.25, 0.5, 1.0))})


@pytest.mark.slow
def test_sfsd_surgical_by_perplexity(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 12)
    settings = "criterion=perplexity,fractions=[0.25,0.5,1.0],matrices=[down_proj,o_proj],growth=1.05,skip_blocks=1"
    recipe = f"sfsd-surgical:{settings}"
    matrices = [matrix for matrix in lm.weights.layout.select(parse_recipe(recipe).steps[0]) if matrix.layer]
    _, dense = accuracy_and_loss(lm, documents)

    def accepts(index: int, results: dict) -> int | None:
        return next(
            (
                rank
                for rank, (_, loss) in results.items()
                if numpy.exp(loss) <= numpy.exp(dense) * 1.05 ** (len(matrices) - index)
            ),
            None,
        )

    expected = plain_surgical(lm, documents, matrices, surgical_ranks, accepts)
    (chosen,) = found_by(lm, recipe, documents)
    assert expected and chosen["keep"]["ranks"] == expected and chosen["method"] == "feature_space"


@pytest.mark.slow
def test_sfsd_surgical_by_task(make_lm) -> None:
    import random

    lm = make_lm("llama")
    documents = documents_for(lm, 15)
    recipe = "sfsd-surgical:fractions=[0.25,0.5,1.0],matrices=[down_proj,o_proj],tolerance=0.3,skip_blocks=1"
    matrices = [matrix for matrix in lm.weights.layout.select(parse_recipe(recipe).steps[0]) if matrix.layer]
    dense, dense_loss = accuracy_and_loss(lm, documents)
    order = list(range(15))
    random.Random("0:chunks").shuffle(order)
    chunks = [order[start::3] for start in range(3)]

    def share(right: list[bool], places: list[int]) -> float:
        return sum(right[place] for place in places) / len(places)

    def accepts(index: int, results: dict) -> int | None:
        each = [
            next(
                (
                    rank
                    for rank, (right, loss) in results.items()
                    if share(right, chunk) >= share(dense, chunk) - 0.3 - 1e-9
                    and numpy.exp(-loss) >= 0.7 * numpy.exp(-dense_loss)
                ),
                None,
            )
            for chunk in chunks
        ]
        if None in each:
            return None
        return max(each) if share(results[max(each)][0], order) >= share(dense, order) - 0.3 - 1e-9 else None

    expected = plain_surgical(lm, documents, matrices, surgical_ranks, accepts)
    (chosen,) = found_by(lm, recipe, documents)
    assert expected and chosen["keep"]["ranks"] == expected


# A rank for every matrix.


def test_zero_sum_removes_in_turn_what_raises_and_what_lowers_the_loss() -> None:
    shapes = {"a": (4, 4), "b": (4, 4)}
    effects = {"a": [9.0, 0.3, 0.2, 0.1], "b": [9.0, 0.3, -0.4, -0.15]}
    # From full rank, 32 numbers: a's 0.1 (sum .1), b's -0.15 (-.05), a's 0.2 (.15), b's -0.4 (-.25), a's 0.3. Two
    # factors of rank one hold 8 numbers each.
    assert allotted(shapes, effects, 1.0) == {}
    assert allotted(shapes, effects, 28 / 32) == {"a": 1}
    assert allotted(shapes, effects, 16 / 32) == {"a": 1, "b": 1}
    assert allotted(shapes, effects, 0.01) == {"a": 1, "b": 1}


@pytest.mark.slow
def test_zero_sum_predicts_in_whitened_coordinates(make_lm) -> None:
    """The ranks are those of predictions made the long way: Cholesky factor, singular values of the whitened matrix,
    and the gradient turned into these coordinates.
    """
    lm = make_lm("llama")
    documents = documents_for(lm, 40)
    recipe = "zero-sum:matrices=[o_proj,k_proj],param_fraction=0.6"
    matrices = lm.weights.layout.select(parse_recipe(recipe).steps[0])
    plain = [
        LabelledDocument(document.task, document.context, document.answer, document.doc_hash) for document in documents
    ]
    effects = {}
    gradients = gradients_of(lm, plain, matrices)
    for matrix in matrices:
        inputs: list[torch.Tensor] = []
        handle = lm.model.get_submodule(matrix.module).register_forward_hook(
            lambda module, args, output, inputs=inputs: inputs.append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for document in plain:
            context, answer = lm._encode_pair(document.context, document.answer)
            with torch.no_grad():
                lm.model(torch.tensor([(context + answer)[:-1]]))
        handle.remove()
        x = torch.cat(inputs).double().numpy()
        cholesky = numpy.linalg.cholesky(x.T @ x)
        u, s, vh = numpy.linalg.svd(lm.weights.read(matrix).double().numpy() @ cholesky, full_matrices=False)
        turned = gradients[matrix.key].numpy() @ numpy.linalg.inv(cholesky).T
        effects[matrix.key] = [-float(s[i] * u[:, i] @ turned @ vh[i]) for i in range(len(s))]
    expected = allotted({matrix.key: matrix.shape for matrix in matrices}, effects, 0.6)
    (chosen,) = found_by(lm, recipe, plain)
    assert chosen["keep"]["ranks"] == expected and len(expected) > 2
    assert (chosen["centred"], chosen["bias"]) == (False, False)


def test_ranks_that_nothing_could_refuse_are_told(make_lm) -> None:
    lm = make_lm("llama")
    # The unedited model gets every other one right.
    documents = documents_for(lm)[::4]
    recipe = "sfsd-surgical:fractions=[1.0],matrices=[down_proj],chunks=1,skip_blocks=0"
    for specification, warned in ((recipe, True), (f"{recipe},criterion=perplexity", False)):
        applied = lm.apply(parse_recipe(specification), drawing(documents))
        lm.undo()
        (record,) = applied.searches
        assert record["before"]["correct"] == 0 and len(record["warnings"]) == warned
        assert (
            any(
                "only the loss told ranks apart" in remark
                for remark in receipt_warnings(parse_recipe(specification), applied)
            )
            is warned
        )
    (record,) = lm.apply(parse_recipe(recipe), drawing(documents_for(lm))).searches
    lm.undo()
    assert record["before"]["correct"] > 0 and not record["warnings"]
