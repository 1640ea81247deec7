"""Searches against plain loops written here from their definitions, and what a search leaves: its record, an ordinary recipe, and the model as it was."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy
import pytest
import torch

from harness_ext.checkpoint import read_checkpoint
from harness_ext.controls import NoControl, control_recipe
from harness_ext.errors import RecipeError, UserError
from harness_ext.evidence.documents import CalibrationSet, LabelledDocument
from harness_ext.lm import RecipeLM
from harness_ext.plan import plan
from harness_ext.receipt import VariantFailed, rows
from harness_ext.recipe import parse_recipe, recipe_from
from harness_ext.remarks import remarks
from harness_ext.search.feature_space import allotted
from harness_ext.search.laser import _cannot_rise_above
from harness_ext.search.running import without_searching
from harness_ext.search.scoring import Score
from harness_ext.search.trials import Partial, cannot_win
from harness_ext.weights import model_digest
from harness_ext.workplace import Workplace
from tests.harness_ext.plain_search import accuracy_and_loss, svd_of

FRACTIONS = [0.9, 0.5, 0.2, 0.05]
GRID = "fractions=[0.9,0.5,0.2,0.05]"


def documents_for(lm, count: int = 16) -> list[LabelledDocument]:
    """Half of them answered as the model does, so that edits can make it worse; some with choices."""
    generator = numpy.random.default_rng(0)
    made = []
    for number in range(count):
        words = generator.integers(0, 40, generator.integers(2, 7))
        context = " ".join(f"w{word}" for word in words)
        with torch.no_grad():
            ranked = lm.model(torch.tensor([lm.tok_encode(context)])).logits[0, -1].argsort(descending=True).tolist()
        # Special tokens are no words.
        ranked = [token for token in ranked if token > 2]
        answer = f" {lm.tok_decode([ranked[0 if number % 2 else 2]])}"
        choices = tuple((context, f" {lm.tok_decode([ranked[place]])}") for place in (4, 1, 3)) if number % 4 == 3 else ()
        made.append(LabelledDocument("t", context, choices[1][1] if choices else answer, str(number), choices, (1,) if choices else ()))
    return made


def drawing(documents):
    return lambda calibration, where: [CalibrationSet("t", "train", 0, tuple(documents))]


def truncated(lm, matrix, rank: int) -> torch.Tensor:
    svd = svd_of(lm)(matrix)
    return (svd.u[:, :rank] * svd.s[:rank]) @ svd.vh[:rank]


def scored(lm, documents) -> tuple[int, float]:
    right, loss = accuracy_and_loss(lm, documents)
    return sum(right), loss


def rank_of(matrix, fraction: float) -> int:
    return max(1, int(fraction * min(matrix.shape) + 1e-9))


def found_by(lm, specification: str, documents) -> list[dict]:
    digest = model_digest(lm.model)
    operation = lm.apply(parse_recipe(specification), drawing(documents))
    (record,) = operation.searches
    lm.undo()
    assert model_digest(lm.model) == digest
    assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__ for module in lm.model.modules())
    return record["chosen"]


# Winners.


def plain_laser_search(lm, documents, matrices) -> tuple[str, float]:
    tried = []
    for matrix in matrices:
        for fraction in FRACTIONS:
            lm.weights.replace(matrix, truncated(lm, matrix, rank_of(matrix, fraction)))
            correct, loss = scored(lm, documents)
            lm.weights.restore()
            tried.append((-correct, loss, matrix.key, fraction))
    return min(tried, key=lambda trial: trial[:2])[2:]


def test_laser_search_finds_what_a_plain_loop_finds(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    documents = documents_for(lm)
    step = parse_recipe(f"laser-search:{GRID}").steps[0]
    key, fraction = plain_laser_search(lm, documents, lm.weights.anatomy.select(step))
    (chosen,) = found_by(lm, f"laser-search:{GRID}", documents)
    assert (chosen["matrices"], chosen["keep"]) == ([key], {"rank_fraction": fraction})


def plain_laser_compose(lm, documents, matrices) -> list[tuple[str, float]]:
    best, standing = scored(lm, documents)[0], {}
    originals = {matrix.key: {fraction: truncated(lm, matrix, rank_of(matrix, fraction)) for fraction in FRACTIONS} for matrix in matrices}
    for matrix in reversed(matrices):
        for fraction in sorted(FRACTIONS):
            trial = {**standing, matrix.key: fraction}
            for other in matrices:
                if other.key in trial:
                    lm.weights.replace(other, originals[other.key][trial[other.key]])
            correct, _ = scored(lm, documents)
            lm.weights.restore()
            if correct > best:
                best, standing = correct, trial
    return list(standing.items())


def test_laser_compose_finds_what_a_plain_loop_finds(make_lm, plain_family: str) -> None:
    lm = make_lm(plain_family)
    # Harder ones, so that several edits can help.
    documents = [document for number, document in enumerate(documents_for(lm, 24)) if number % 4 != 1]
    matrices = lm.weights.anatomy.select(parse_recipe(f"laser-compose:{GRID}").steps[0])
    expected = plain_laser_compose(lm, documents, matrices)
    chosen = found_by(lm, f"laser-compose:{GRID}", documents)
    assert expected and [(step["matrices"][0], step["keep"]["rank_fraction"]) for step in chosen] == expected


def test_laser_search_on_the_embedded_model(demo_lm) -> None:
    lm, documents = demo_lm
    step = parse_recipe(f"laser-search:{GRID}").steps[0]
    key, fraction = plain_laser_search(lm, documents, lm.weights.anatomy.select(step))
    (chosen,) = found_by(lm, f"laser-search:{GRID}", documents)
    assert (chosen["matrices"], chosen["keep"]) == ([key], {"rank_fraction": fraction})


@pytest.fixture(scope="module")
def demo_lm():
    from harness_ext.demo import demo_path
    from harness_ext.evidence.documents import PromptSettings, draw_documents
    from harness_ext.steps import Calibration
    from harness_ext.task_index import task_manager

    tasks = task_manager().load(["int_mult"])["tasks"]
    (drawn,) = draw_documents(Calibration(task=("int_mult",), samples=24), tasks, set(), PromptSettings())
    return RecipeLM(str(demo_path()), device="cpu"), list(drawn.documents)


def gradients_of(lm, documents, matrices) -> dict[str, torch.Tensor]:
    """`dL/dW [m, n]` of each matrix, L the mean over documents of their loss, by ordinary backpropagation, one document at a time."""
    from torch.nn.functional import cross_entropy

    total = {matrix.key: 0.0 for matrix in matrices}
    for document in documents:
        context, answer = lm._encode_pair(document.context, document.answer)
        lm.model.zero_grad()
        logits = lm.model(torch.tensor([(context + answer)[:-1]])).logits[0, -len(answer) :]
        cross_entropy(logits, torch.tensor(answer)).backward()
        for matrix in matrices:
            gradient = lm.model.get_parameter(matrix.parameter).grad
            total[matrix.key] = total[matrix.key] + (gradient.T if matrix.stored_transposed else gradient).double() / len(documents)
    lm.model.zero_grad(set_to_none=True)
    return total


@pytest.mark.parametrize("refined", [1, 2])
def test_laser_gradient_finds_what_a_plain_loop_finds(make_lm, plain_family: str, refined: int) -> None:
    lm = make_lm(plain_family)
    documents = documents_for(lm)
    recipe = f"laser-gradient:{GRID},matrices=[mlp],top=2,clusters=[1,2,3],beyond=0.1,refined={refined}"
    matrices = lm.weights.anatomy.select(parse_recipe(recipe).steps[0])
    worth = {}
    for key, gradient in gradients_of(lm, documents, matrices).items():
        (matrix,) = [matrix for matrix in matrices if matrix.key == key]
        u, s, vh = numpy.linalg.svd(lm.weights.read(matrix).double().numpy(), full_matrices=False)
        per_value = numpy.einsum("mi,mn,in->i", u, gradient.numpy(), vh)
        worth[key] = float((s * per_value.clip(min=0))[max(1, int(0.1 * len(s))) :].sum())
    promising = sorted(worth, key=lambda key: -worth[key])[:2]
    tried = []

    def try_in(keys, counts) -> None:
        for matrix, count, fraction in itertools.product([matrix for matrix in matrices if matrix.key in keys], counts, FRACTIONS):
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
    best_first = list(dict.fromkeys(trial[2] for trial in sorted(tried, key=lambda trial: trial[:2])))
    try_in(best_first[:refined], (2, 3))
    _, _, key, count, fraction = min(tried, key=lambda trial: trial[:2])
    (chosen,) = found_by(lm, recipe, documents)
    assert (chosen["matrices"], chosen.get("clusters", 1), chosen["keep"]["rank_fraction"]) == ([key], count, fraction)


def plain_surgical(lm, documents, matrices, ranks, accepts) -> dict[str, int]:
    """The moments by a hook on each linear layer, one document at a time; the edit from its formula; `accepts(index, scores by rank)` says which rank, if any."""
    inputs: dict[str, list] = {matrix.key: [] for matrix in matrices}
    handles = [
        lm.model.get_submodule(matrix.module).register_forward_hook(lambda module, args, output, key=matrix.key: inputs[key].append(args[0].reshape(-1, args[0].shape[-1]))) for matrix in matrices
    ]
    for document in documents:
        context, answer = lm._encode_pair(document.context, document.answer)
        with torch.no_grad():
            lm.model(torch.tensor([(context + answer)[:-1]]))
    for handle in handles:
        handle.remove()
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


def test_sfsd_surgical_by_perplexity(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm, 12)
    recipe = "sfsd-surgical:criterion=perplexity,fractions=[0.25,0.5,1.0],matrices=[down_proj,o_proj],growth=1.05,skip_blocks=1"
    matrices = [matrix for matrix in lm.weights.anatomy.select(parse_recipe(recipe).steps[0]) if matrix.layer]
    _, dense = accuracy_and_loss(lm, documents)

    def accepts(index: int, results: dict) -> int | None:
        return next((rank for rank, (_, loss) in results.items() if numpy.exp(loss) <= numpy.exp(dense) * 1.05 ** (len(matrices) - index)), None)

    expected = plain_surgical(lm, documents, matrices, surgical_ranks, accepts)
    (chosen,) = found_by(lm, recipe, documents)
    assert expected and chosen["keep"]["ranks"] == expected and chosen["method"] == "feature_space"


def test_sfsd_surgical_by_task(make_lm) -> None:
    import random

    lm = make_lm("llama")
    documents = documents_for(lm, 15)
    recipe = "sfsd-surgical:fractions=[0.25,0.5,1.0],matrices=[down_proj,o_proj],tolerance=0.3,skip_blocks=1"
    matrices = [matrix for matrix in lm.weights.anatomy.select(parse_recipe(recipe).steps[0]) if matrix.layer]
    dense, _ = accuracy_and_loss(lm, documents)
    order = list(range(15))
    random.Random("0:chunks").shuffle(order)
    chunks = [order[start::3] for start in range(3)]

    def share(right: list[bool], places: list[int]) -> float:
        return sum(right[place] for place in places) / len(places)

    def accepts(index: int, results: dict) -> int | None:
        each = [next((rank for rank, (right, _) in results.items() if share(right, chunk) >= share(dense, chunk) - 0.3 - 1e-9), None) for chunk in chunks]
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
    # From full rank, 32 numbers: a's 0.1 (sum .1), b's -0.15 (-.05), a's 0.2 (.15), b's -0.4 (-.25), a's 0.3. Two factors of rank one hold 8 numbers each.
    assert allotted(shapes, effects, 1.0) == {}
    assert allotted(shapes, effects, 28 / 32) == {"a": 1}
    assert allotted(shapes, effects, 16 / 32) == {"a": 1, "b": 1}
    assert allotted(shapes, effects, 0.01) == {"a": 1, "b": 1}


def test_zero_sum_predicts_in_whitened_coordinates(make_lm) -> None:
    """The ranks are those of predictions made the long way: Cholesky factor, singular values of the whitened matrix, and the gradient turned into these coordinates."""
    lm = make_lm("llama")
    documents = documents_for(lm, 40)
    recipe = "zero-sum:matrices=[o_proj,k_proj],param_fraction=0.6"
    matrices = lm.weights.anatomy.select(parse_recipe(recipe).steps[0])
    plain = [LabelledDocument(document.task, document.context, document.answer, document.doc_hash) for document in documents]
    effects = {}
    gradients = gradients_of(lm, plain, matrices)
    for matrix in matrices:
        inputs: list[torch.Tensor] = []
        handle = lm.model.get_submodule(matrix.module).register_forward_hook(lambda module, args, output, inputs=inputs: inputs.append(args[0].reshape(-1, args[0].shape[-1])))
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
        operation = lm.apply(parse_recipe(specification), drawing(documents))
        lm.undo()
        (record,) = operation.searches
        assert record["before"]["correct"] == 0 and len(record["warnings"]) == warned
        assert any("every rank passed" in remark for remark in remarks(parse_recipe(specification), operation)) is warned
    (record,) = lm.apply(parse_recipe(recipe), drawing(documents_for(lm))).searches
    lm.undo()
    assert record["before"]["correct"] > 0 and not record["warnings"]


# What a search leaves.


@pytest.mark.parametrize("recipe", [f"laser-search:{GRID}", "sfsd-surgical:fractions=[0.5,1.0],tolerance=0.3,matrices=[mlp]", "laser-gradient:clusters=[3],top=1,grouping=subspace"])
def test_the_winner_as_an_ordinary_recipe_gives_the_same_weights(make_lm, recipe: str) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    operation = lm.apply(parse_recipe(recipe), drawing(documents))
    digest = lm.weights.digest()
    (record,) = operation.searches
    lm.undo()
    data = without_searching(parse_recipe(recipe), operation.searches)
    again = lm.apply(recipe_from(json.loads(json.dumps(data)), origin="found"), drawing(documents))
    assert lm.weights.digest() == digest and not again.searches
    assert record["after"]["loss"] == pytest.approx(scored(lm, documents)[1], rel=1e-4) and record["after"]["correct"] == scored(lm, documents)[0]
    lm.undo()
    assert record["before"]["correct"] == scored(lm, documents)[0]
    assert len(record["trials"]) == record["planned"] and record["forward_passes"] > 0


def test_the_control_of_many_matrices_keeps_as_many_parameters(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    recipe = parse_recipe("zero-sum:param_fraction=0.6")
    operation = lm.apply(recipe, drawing(documents))
    receipt, totals = {"matrices": rows(operation.records), "searches": operation.searches}, lm.totals()
    (record,) = operation.searches
    (trial,) = record["trials"]
    assert trial["accepted"] and trial["keep"] == record["chosen"][0]["keep"]
    assert {key: trial[key] for key in ("correct", "accuracy", "loss")} == record["after"]
    # As it was and as it became; moments and gradients each over all documents, gradients backwards as well.
    assert record["forward_passes"] == pytest.approx(4) and record["backward_passes"] == 1
    assert len(operation.calibration) == 1
    lm.undo()
    found = lm.apply(control_recipe("random-subspace", recipe, receipt), drawing(documents))
    assert lm.totals()["parameters_after"] == totals["parameters_after"] < totals["parameters_before"]
    assert len(found.searches[0]["trials"]) == 1
    lm.undo()


def test_trials_tell_what_was_accepted_and_how_each_part_of_the_documents_did(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    composed = lm.apply(parse_recipe(f"laser-compose:{GRID}"), drawing(documents)).searches[0]
    lm.undo()
    accepted = [trial for trial in composed["trials"] if trial["accepted"]]
    assert [(one["matrices"], one["keep"]) for one in accepted] == [(one["matrices"], one["keep"]) for one in composed["chosen"]]
    assert all("parts" not in trial for trial in composed["trials"])
    surgical = lm.apply(parse_recipe("sfsd-surgical:fractions=[0.5,1.0],tolerance=0.3,matrices=[mlp]"), drawing(documents)).searches[0]
    lm.undo()
    ranks = {key: rank for trial in surgical["trials"] if trial["accepted"] for key, rank in trial["keep"]["ranks"].items()}
    assert ranks and [ranks] == [step["keep"]["ranks"] for step in surgical["chosen"]]
    for trial in surgical["trials"]:
        assert sum(part["correct"] for part in trial["parts"]) == trial["correct"]
        assert [part["documents"] for part in trial["parts"]] == [6, 5, 5] or trial["dropped"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("recipe", [f"laser-search:{GRID}", f"laser-compose:{GRID}"])
def test_a_killed_search_goes_on_to_the_same_winner(make_lm, tmp_path: Path, monkeypatch, recipe: str) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    parsed, work = parse_recipe(recipe), Workplace(tmp_path / "work")
    whole = lm.apply(parsed, drawing(documents)).searches[0]
    lm.undo()
    append, left = Workplace.append, 4

    def killed(self, name, row):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        append(self, name, row)

    monkeypatch.setattr(Workplace, "append", killed)
    digest = model_digest(lm.model)
    with pytest.raises(Killed):
        lm.apply(parsed, drawing(documents), work=work)
    assert model_digest(lm.model) == digest
    monkeypatch.setattr(Workplace, "append", append)
    kept = work.part("step-0").rows("trials")
    assert len(kept) == 3
    resumed = lm.apply(parsed, drawing(documents), work=work).searches[0]
    lm.undo()
    assert (resumed["chosen"], resumed["trials"]) == (whole["chosen"], whole["trials"])
    assert (whole["resumed"], resumed["resumed"]) == (0, sum(len(row["trials"]) for row in kept))
    # What the killed process did is counted; a state that it had computed for later trials may be computed again.
    assert whole["forward_passes"] <= resumed["forward_passes"] < 1.5 * whole["forward_passes"]
    assert resumed["seconds"] > sum(row["seconds"] for row in kept) > 0
    assert any("went on from" in note for note in resumed["notes"])


def test_the_same_seed_makes_the_same_trials(make_lm) -> None:
    lm = make_lm("gpt2")
    documents = documents_for(lm)
    ranks = dict(zip((matrix.key for matrix in lm.weights.anatomy.matrices if matrix.role in ("up_proj", "down_proj")), (12, 5), strict=False))

    def trials(seed: int) -> list:
        data = {"name": "r", "steps": [{"method": "search_at_random", "matrices": ["mlp"], "instead_of": ranks, "tries": 5, "seed": seed}]}
        record = lm.apply(recipe_from(data, origin="r"), drawing(documents)).searches[0]
        lm.undo()
        return record["trials"]

    assert trials(0) == trials(0) != trials(1)


def test_dropping_losers_early_does_not_change_the_winner(make_lm, monkeypatch) -> None:
    from harness_ext.search import bench

    lm = make_lm("llama")
    documents = documents_for(lm, 40)
    # One document a batch, so that there is something to drop.
    monkeypatch.setattr(bench, "SMALLEST_BATCH", 1)
    monkeypatch.setattr(bench, "BATCHES", 1000)
    dropping = lm.apply(parse_recipe("laser-search"), drawing(documents)).searches[0]
    lm.undo()
    monkeypatch.setattr("harness_ext.search.trials.cannot_win", lambda bar: None)
    whole = lm.apply(parse_recipe("laser-search"), drawing(documents)).searches[0]
    lm.undo()
    assert dropping["chosen"] == whole["chosen"]
    assert sum(trial["dropped"] for trial in dropping["trials"]) > 10 and not any(trial["dropped"] for trial in whole["trials"])
    assert dropping["forward_passes"] < 0.8 * whole["forward_passes"]


def test_the_control_tries_as_often_at_the_same_budget(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    recipe = parse_recipe(f"laser-search:{GRID}")
    operation = lm.apply(recipe, drawing(documents))
    receipt = {"matrices": rows(operation.records), "searches": operation.searches}
    lm.undo()
    control = control_recipe("random-subspace", recipe, receipt)
    found = lm.apply(control, drawing(documents))
    lm.undo()
    assert (control.control, control.control_of) == ("random-subspace", recipe.recipe_id)
    assert len(found.searches[0]["trials"]) == len(operation.searches[0]["trials"]) == 36
    (edited,), (ours,) = found.records, operation.records
    assert edited.method == "random_subspace" and edited.rank_after == ours.rank_after
    shapes = {matrix.key: sorted(matrix.shape) for matrix in lm.weights.anatomy.matrices}
    tried = {trial["matrices"][0] for trial in found.searches[0]["trials"]}
    assert len(tried) > 2 and {tuple(shapes[key]) for key in tried} == {tuple(sorted(ours.shape))}
    assert [trial["accepted"] for trial in found.searches[0]["trials"]].count(True) == 1
    shuffled = control_recipe("shuffled-labels", recipe, receipt)
    assert shuffled.steps[0].evidence.shuffled_labels and shuffled.steps[0].is_search


def test_a_winner_of_full_rank_has_no_control_that_keeps_a_rank(make_lm) -> None:
    lm = make_lm("llama")
    # Clusters whose ranks add up to more than the matrix has: another matrix, but none of low rank.
    recipe = parse_recipe("laser-gradient:matrices=[up_proj],clusters=[4],fractions=[0.9],top=1")
    operation = lm.apply(recipe, drawing(documents_for(lm)))
    receipt = {"matrices": rows(operation.records), "searches": operation.searches}
    (edited,) = operation.records
    assert edited.rank_after == edited.rank_before and edited.relative_error > 0
    lm.undo()
    with pytest.raises(NoControl, match="noise can be its control"):
        control_recipe("random-subspace", recipe, receipt)
    assert control_recipe("noise", recipe, receipt).steps[0].parameters["relative_error"] == pytest.approx(edited.relative_error)


def test_an_alternative_that_cannot_be_chosen_leads_nobody() -> None:
    infinite = Partial(torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool), torch.tensor([[1.0, torch.inf, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]), torch.tensor([1, 1, 1, 0], dtype=torch.bool))
    assert cannot_win(None)(infinite).tolist() == [True, False]
    assert _cannot_rise_above(Score(0, 4, 1.0))(infinite).tolist() == [True, False]
    assert cannot_win(None)(infinite._replace(loss=torch.ones(2, 4))).tolist() == [False, True]


def test_from_the_command_to_a_recipe_without_the_search(demo_run, lm_eval, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "laser-search:calibration.samples=20", "zero-sum:calibration.samples=20", limit=8)
    assert ran.code == 0, ran.err
    receipts = {path.parent: json.loads(path.read_text()) for path in tmp_path.glob("results/demo/*/receipt.json")}
    files = []
    for place, receipt in receipts.items():
        if receipt["recipe"]["label"] == "baseline":
            continue
        (record,) = receipt["searches"]
        assert record["chosen"] and record["documents"] == 20 and record["seed"] == 0
        shown = lm_eval("recipes", "show", "--from", place)
        assert shown.code == 0 and "search" not in shown.out.split("steps:")[1] and shown.out.count("method:") == 1
        files.append(tmp_path / f"{place.name}.yaml")
        files[-1].write_text(shown.out)
    again = demo_run("--recipe", *files, limit=8)
    assert again.code == 0, again.err
    digests = [json.loads(path.read_text())["weights"]["digest_after"] for path in tmp_path.glob("results/demo/*/receipt.json")]
    assert len(digests) == 5 and len(set(digests)) == 3
    assert not list(tmp_path.glob("results/demo/.*"))


def test_the_winner_is_not_scored_on_what_it_was_chosen_on(demo_run, lm_eval, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "laser-search:calibration.split=test,calibration.samples=20", limit=70)
    assert ran.code == 0, ran.err
    (place,) = tmp_path.glob("results/demo/laser-search*")
    receipt = json.loads((place / "receipt.json").read_text())
    learned = {hashed for used in receipt["calibration"] for hashed in used["documents"]}
    (tmp_path / "mine.yaml").write_text(lm_eval("recipes", "show", "--from", place).out)
    # Asked for more documents than the search was, and beside a recipe that learned nothing.
    assert demo_run("--recipe", "mine.yaml", "laser", limit=80).code == 0
    found = [path for path in tmp_path.glob("results/demo/*/receipt.json") if path.parent != place and json.loads(path.read_text())["tasks"]["int_mult"]["scored"] == 60]
    assert len(found) == 3
    for path in found:
        (samples,) = path.parent.glob("samples_*.jsonl")
        assert not learned & {json.loads(line)["doc_hash"] for line in samples.read_text().splitlines()}
    (mine,) = tmp_path.glob("results/demo/laser-search-found*")
    assert json.loads((mine / "receipt.json").read_text())["weights"] == receipt["weights"]
    assert lm_eval("export", "--model_args", "pretrained=demo", "--recipe", "mine.yaml", "--out", "edited").code == 0
    with pytest.raises(UserError, match="cannot be taken out of the score here"):
        RecipeLM("demo", recipe=str(tmp_path / "mine.yaml"), device="cpu")
    # What is shown of that run still knows, and tasks without these documents are scored whole.
    assert len(learned) == 20 and all(hashed in lm_eval("recipes", "show", "--from", mine).out for hashed in learned)
    assert "same model, tasks and settings" in demo_run("--recipe", "laser", tasks="int_sum", limit=8).err + demo_run("--recipe", "mine.yaml", tasks="int_sum", limit=8).err


def test_the_plan_of_a_search(lm_eval) -> None:
    planned = lm_eval("recipes", "plan", "laser-search", "--model_args", "pretrained=demo")
    assert planned.code == 0 and "at most 48 trials among 6 matrices on 160 documents" in planned.out
    assert "at most 1 trial among 14 matrices" in lm_eval("recipes", "plan", "zero-sum", "--model_args", "pretrained=demo").out
    assert "at most 77 trials among 7 matrices" in lm_eval("recipes", "plan", "sfsd-surgical:skip_blocks=1", "--model_args", "pretrained=demo").out


@pytest.mark.parametrize("recipe", ["laser-search", "laser-compose", "laser-gradient", "laser-gradient:clusters=[1,2,5000],refined=2,layers=[0]", "sfsd-surgical", "sfsd-surgical:skip_blocks=1", "zero-sum"])
def test_a_search_does_no_more_than_its_plan_says(make_lm, make_model, family: str, recipe: str) -> None:
    parsed = parse_recipe(recipe)
    (planned,) = plan(parsed, read_checkpoint(str(make_model(family)))).searches
    lm = make_lm(family)
    (record,) = lm.apply(parsed, drawing(documents_for(lm, 60))).searches
    lm.undo()
    assert record["planned"] == planned.trials >= len(record["trials"]) > 0
    assert record["forward_passes"] <= planned.passes + 0.5
    # Which matrices are the promising ones, and how large their grids, is not known before.
    assert recipe.startswith("laser-gradient") or len(record["trials"]) == planned.trials


# What a user can get wrong.


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("laser-search:fractions=[1.0]", "nothing to try: no setting of this search changes any of the 6 chosen matrices"),
        ("laser-search:fractions=[]", "steps.0.fractions: tuple should have at least 1 item"),
        ("laser-search:fractions=[0.5,0]", "steps.0.fractions.1: input should be greater than 0"),
        ("laser-search:fraction=[0.5]", "unknown key 'fraction', did you mean 'fractions'"),
        ("laser-search:layers=[7]", "layers: 7 is outside 0 to 1"),
        ("laser-search:calibration.samples=900", "900 documents of 'int_mult' were asked for, and its train split has 320"),
        ("sfsd-surgical:skip_blocks=2,calibration.samples=8", "all chosen matrices lie in the first 2 of 2 layers"),
        ("laser-gradient:clusters=[1000]", "nothing to try"),
        ("laser-gradient:grouping=rows", "grouping: input should be 'block' or 'subspace'"),
    ],
)
def test_mistakes_are_told(demo_run, recipe: str, message: str) -> None:
    ran = demo_run("--recipe", recipe, limit=4)
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err, ran.err
    assert "evaluating" not in ran.err


def test_a_run_to_show_must_be_one(lm_eval, tmp_path: Path) -> None:
    assert "cannot be read" in lm_eval("recipes", "show", "--from", tmp_path / "none").err
    (tmp_path / "receipt.json").write_text("[]")
    assert "is not the receipt of a run" in lm_eval("recipes", "show", "--from", tmp_path).err
    assert "one of the two" in lm_eval("recipes", "show").err


def test_a_loss_that_is_not_finite_keeps_the_trials(make_lm, tmp_path: Path) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    step = parse_recipe(f"laser-search:{GRID}")
    head = lm.model.get_output_embeddings()
    calls = 0

    def broken(module, args, output):
        nonlocal calls
        calls += 1
        return output * float("nan") if calls > 1 else output

    handle = head.register_forward_hook(broken)
    work = Workplace(tmp_path / "work")
    with pytest.raises(VariantFailed, match="of the 36 trials none has a finite loss") as failed:
        lm.apply(step, drawing(documents), work=work)
    (record,) = failed.value.searches
    assert len(record["trials"]) == 36 and {trial["loss"] for trial in record["trials"]} == {None}
    assert sum(len(row["trials"]) for row in work.part("step-0").rows("trials")) == 36
    with pytest.raises(VariantFailed, match="loss of the unedited model"):
        lm.apply(step, drawing(documents))
    handle.remove()


def test_ranks_must_be_there_for_every_matrix(make_lm) -> None:
    lm = make_lm("llama")
    data = {"name": "r", "steps": [{"method": "truncate_svd", "matrices": ["down_proj"], "keep": {"ranks": {"model.layers.0.mlp.down_proj.weight": 2}}}]}
    with pytest.raises(UserError, match=r"model.layers.1.mlp.down_proj.weight: keep.ranks has no rank for it"):
        lm.apply(recipe_from(data, origin="r"), lambda calibration, where: [])
    with pytest.raises(RecipeError, match="exactly one of rank, rank_fraction, energy, param_fraction, ranks"):
        parse_recipe("svd:keep.rank=3,keep.ranks={a: 1}")
