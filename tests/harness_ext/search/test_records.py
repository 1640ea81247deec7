"""What a search leaves: its record, an ordinary recipe, its controls, and the model as it was; and what a user can get
wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval import simple_evaluate

from harness_ext.editing.controls import NoControl, control_recipe
from harness_ext.editing.plan import plan
from harness_ext.errors import RecipeError, UserError, VariantFailed
from harness_ext.lm_eval_adapter.backend import RecipeLM
from harness_ext.lm_eval_adapter.task_index import task_manager, tasks_root
from harness_ext.model.checkpoint import read_checkpoint
from harness_ext.model.weights import model_digest
from harness_ext.recipe.recipe import parse_recipe, recipe_from
from harness_ext.search.laser import _cannot_rise_above
from harness_ext.search.runner import without_searching
from harness_ext.search.scoring import CandidateScore
from harness_ext.search.trials import Partial, cannot_win
from harness_ext.storage.resume import ResumeState
from tests.harness_ext.conftest import MIXTURES
from tests.harness_ext.search.plain_search import (
    GRID,
    documents_for,
    drawing,
    scored,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        f"laser-search:{GRID}",
        "sfsd-surgical:fractions=[0.5,1.0],tolerance=0.3,matrices=[mlp]",
        "laser-gradient:clusters=[3],top=1,grouping=subspace",
    ],
)
def test_the_winner_as_an_ordinary_recipe_gives_the_same_weights(make_lm, recipe: str) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    applied = lm.apply(parse_recipe(recipe), drawing(documents))
    digest = lm.weights.digest()
    (record,) = applied.searches
    lm.undo()
    data = without_searching(parse_recipe(recipe), applied.searches)
    again = lm.apply(recipe_from(json.loads(json.dumps(data)), origin="found"), drawing(documents))
    assert lm.weights.digest() == digest and not again.searches
    assert (
        record["after"]["loss"] == pytest.approx(scored(lm, documents)[1], rel=1e-4)
        and record["after"]["correct"] == scored(lm, documents)[0]
    )
    lm.undo()
    assert record["before"]["correct"] == scored(lm, documents)[0]
    assert len(record["trials"]) == record["planned"] and record["forward_passes"] > 0


def test_the_control_of_many_matrices_keeps_as_many_parameters(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    recipe = parse_recipe("zero-sum:param_fraction=0.6")
    applied = lm.apply(recipe, drawing(documents))
    receipt, totals = (
        {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches},
        lm.totals(),
    )
    (record,) = applied.searches
    (trial,) = record["trials"]
    assert trial["accepted"] and trial["keep"] == record["chosen"][0]["keep"]
    assert {key: trial[key] for key in ("correct", "accuracy", "loss")} == record["after"]
    # As it was and as it became; moments and gradients each over all documents, gradients backwards as well.
    assert record["forward_passes"] == pytest.approx(4) and record["backward_passes"] == 1
    assert len(applied.calibration) == 1
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
    assert [(one["matrices"], one["keep"]) for one in accepted] == [
        (one["matrices"], one["keep"]) for one in composed["chosen"]
    ]
    assert all("parts" not in trial for trial in composed["trials"])
    surgical = lm.apply(
        parse_recipe("sfsd-surgical:fractions=[0.5,1.0],tolerance=0.3,matrices=[mlp]"), drawing(documents)
    ).searches[0]
    lm.undo()
    ranks = {
        key: rank for trial in surgical["trials"] if trial["accepted"] for key, rank in trial["keep"]["ranks"].items()
    }
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
    parsed, work = parse_recipe(recipe), ResumeState(tmp_path / "work")
    whole = lm.apply(parsed, drawing(documents)).searches[0]
    lm.undo()
    append, left = ResumeState.append, 4

    def killed(self, name, row):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        append(self, name, row)

    monkeypatch.setattr(ResumeState, "append", killed)
    digest = model_digest(lm.model)
    with pytest.raises(Killed):
        lm.apply(parsed, drawing(documents), resume=work)
    assert model_digest(lm.model) == digest
    monkeypatch.setattr(ResumeState, "append", append)
    kept = work.part("step-0").rows("trials")
    assert len(kept) == 3
    resumed = lm.apply(parsed, drawing(documents), resume=work).searches[0]
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
    ranks = dict(
        zip(
            (matrix.key for matrix in lm.weights.layout.matrices if matrix.role in ("up_proj", "down_proj")),
            (12, 5),
            strict=False,
        )
    )

    def trials(seed: int) -> list:
        data = {
            "name": "r",
            "steps": [
                {"method": "search_at_random", "matrices": ["mlp"], "instead_of": ranks, "tries": 5, "seed": seed}
            ],
        }
        record = lm.apply(recipe_from(data, origin="r"), drawing(documents)).searches[0]
        lm.undo()
        return record["trials"]

    assert trials(0) == trials(0) != trials(1)


@pytest.mark.slow
def test_dropping_losers_early_does_not_change_the_winner(make_lm, monkeypatch) -> None:
    from harness_ext.search import evaluator

    lm = make_lm("llama")
    documents = documents_for(lm, 40)
    # One document a batch, so that there is something to drop.
    monkeypatch.setattr(evaluator, "SMALLEST_BATCH", 1)
    monkeypatch.setattr(evaluator, "BATCHES", 1000)
    dropping = lm.apply(parse_recipe("laser-search"), drawing(documents)).searches[0]
    lm.undo()
    monkeypatch.setattr("harness_ext.search.trials.cannot_improve", lambda before, bar: None)
    whole = lm.apply(parse_recipe("laser-search"), drawing(documents)).searches[0]
    lm.undo()
    assert dropping["chosen"] == whole["chosen"]
    assert sum(trial["dropped"] for trial in dropping["trials"]) > 10 and not any(
        trial["dropped"] for trial in whole["trials"]
    )
    assert dropping["forward_passes"] < 0.8 * whole["forward_passes"]


def test_the_control_tries_as_often_at_the_same_budget(make_lm) -> None:
    lm = make_lm("llama")
    documents = documents_for(lm)
    recipe = parse_recipe(f"laser-search:{GRID}")
    applied = lm.apply(recipe, drawing(documents))
    receipt = {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches}
    lm.undo()
    control = control_recipe("random-subspace", recipe, receipt)
    found = lm.apply(control, drawing(documents))
    lm.undo()
    assert (control.control, control.control_of) == ("random-subspace", recipe.recipe_id)
    assert len(found.searches[0]["trials"]) == len(applied.searches[0]["trials"]) == 36
    (edited,), (ours,) = found.records, applied.records
    assert edited.method == "random_subspace" and edited.rank_after == ours.rank_after
    shapes = {matrix.key: sorted(matrix.shape) for matrix in lm.weights.layout.matrices}
    tried = {trial["matrices"][0] for trial in found.searches[0]["trials"]}
    assert len(tried) > 2 and {tuple(shapes[key]) for key in tried} == {tuple(sorted(ours.shape))}
    assert [trial["accepted"] for trial in found.searches[0]["trials"]].count(True) == 1
    shuffled = control_recipe("shuffled-labels", recipe, receipt)
    assert shuffled.steps[0].calibration.shuffled_labels and shuffled.steps[0].is_search


def test_a_winner_of_full_rank_has_no_control_that_keeps_a_rank(make_lm) -> None:
    lm = make_lm("llama")
    # Clusters whose ranks add up to more than the matrix has: another matrix, but none of low rank.
    recipe = parse_recipe("laser-gradient:matrices=[gate_proj],clusters=[6],fractions=[0.9],top=1")
    applied = lm.apply(recipe, drawing(documents_for(lm)))
    receipt = {"matrices": [record.to_json() for record in applied.records], "searches": applied.searches}
    (edited,) = applied.records
    assert edited.rank_after == edited.rank_before and edited.relative_error > 0
    lm.undo()
    with pytest.raises(NoControl, match="noise can be its control"):
        control_recipe("random-subspace", recipe, receipt)
    assert control_recipe("noise", recipe, receipt).steps[0].parameters["relative_error"] == pytest.approx(
        edited.relative_error
    )


def test_an_alternative_that_cannot_be_chosen_leads_nobody() -> None:
    infinite = Partial(
        torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool),
        torch.tensor([[1.0, torch.inf, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]),
        torch.tensor([1, 1, 1, 0], dtype=torch.bool),
    )
    assert cannot_win(None)(infinite).tolist() == [True, False]
    assert _cannot_rise_above(CandidateScore(0, 4, 1.0))(infinite).tolist() == [True, False]
    assert cannot_win(None)(infinite._replace(loss=torch.ones(2, 4))).tolist() == [False, True]


@pytest.mark.slow
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
    digests = [
        json.loads(path.read_text())["weights"]["digest_after"] for path in tmp_path.glob("results/demo/*/receipt.json")
    ]
    assert len(digests) == 5 and len(set(digests)) == 3
    assert not list(tmp_path.glob("results/demo/.*"))


@pytest.mark.slow
def test_the_winner_is_not_scored_on_what_it_was_chosen_on(demo_run, lm_eval, tmp_path: Path) -> None:
    ran = demo_run("--recipe", "laser-search:calibration.split=test,calibration.samples=20", limit=70)
    assert ran.code == 0, ran.err
    (place,) = tmp_path.glob("results/demo/laser-search*")
    receipt = json.loads((place / "receipt.json").read_text())
    learned = {hashed for used in receipt["calibration"] for hashed in used["documents"]}
    (tmp_path / "mine.yaml").write_text(lm_eval("recipes", "show", "--from", place).out)
    # Asked for more documents than the search was, and beside a recipe that learned nothing.
    assert demo_run("--recipe", "mine.yaml", "laser", limit=80).code == 0
    found = [
        path
        for path in tmp_path.glob("results/demo/*/receipt.json")
        if path.parent != place and json.loads(path.read_text())["tasks"]["int_mult"]["scored"] == 60
    ]
    assert len(found) == 3
    for path in found:
        (samples,) = path.parent.glob("samples_*.jsonl")
        assert not learned & {json.loads(line)["doc_hash"] for line in samples.read_text().splitlines()}
    (mine,) = tmp_path.glob("results/demo/laser-search-found*")
    assert json.loads((mine / "receipt.json").read_text())["weights"] == receipt["weights"]
    assert lm_eval("export", "--model_args", "pretrained=demo", "--recipe", "mine.yaml", "--out", "edited").code == 0
    # Where nothing can be taken out of the score, tasks without these documents are scored, and others refused.
    lm = RecipeLM("demo", recipe=str(tmp_path / "mine.yaml"), device="cpu")
    asked = {"model": lm, "task_manager": task_manager(), "bootstrap_iters": 0}
    assert simple_evaluate(tasks=["int_sum"], limit=4, **asked)["results"]
    with pytest.raises(UserError, match="20 of the 80 documents asked here .* cannot be taken out of the score here"):
        simple_evaluate(tasks=["int_mult"], **asked)
    # What is shown of that run still knows, and tasks without these documents are scored whole.
    assert len(learned) == 20 and all(hashed in lm_eval("recipes", "show", "--from", mine).out for hashed in learned)
    assert (
        "same model, tasks and settings"
        in demo_run("--recipe", "laser", tasks="int_sum", limit=8).err
        + demo_run("--recipe", "mine.yaml", tasks="int_sum", limit=8).err
    )


@pytest.mark.slow
def test_what_was_chosen_beyond_a_limit_stays_out_of_the_whole_score(demo_run, lm_eval, tmp_path: Path) -> None:
    """The documents that a search chose on were not scored then, for `--limit` alone; later they would be."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "same.yaml").write_text(
        f"include: {tasks_root() / 'arithmetic' / 'int_mult.yaml'}\ntask: same\ntraining_split: test\n"
    )
    here = ("--include_path", tmp_path / "tasks")
    searched = "laser-search:calibration.samples=20"
    ran = demo_run(*here, "--recipe", searched, tasks="same", limit=40)
    assert ran.code == 0, ran.err
    (place,) = tmp_path.glob("results/demo/laser-search*")
    receipt = json.loads((place / "receipt.json").read_text())
    (used,) = receipt["calibration"]
    assert receipt["searches"][0]["chosen"]
    assert len(used["documents"]) == 20 and used["contents"] and used["split"] == "train"
    shown = lm_eval("recipes", "show", "--from", place).out
    (tmp_path / "mine.yaml").write_text(shown)
    assert all(hashed in shown for hashed in (*used["documents"], *used["contents"]))

    ran = demo_run(*here, "--recipe", "mine.yaml:seed=0", "--control", "noise", tasks="same", limit=80)
    assert ran.code == 0 and "same: 20 of 80 documents are out of every score" in ran.err
    found = [json.loads(path.read_text()) for path in tmp_path.glob("results/demo/*/receipt.json")]
    full = {one["recipe"]["name"]: one for one in found if one["tasks"]["same"]["scored"] == 60}
    assert set(full) == {"baseline", "laser-search-found", "noise"}
    assert set(full["noise"]["recipe"]["resolved"]["chosen_on"]) >= set(used["documents"])
    assert "incomparable" not in ran.out

    ran = lm_eval("export", "--model_args", "pretrained=demo", "--recipe", "mine.yaml", "--out", "edited")
    assert ran.code == 0, ran.err
    exported = json.loads((tmp_path / "edited" / "receipt.json").read_text())
    assert set(exported["chosen_on"]) >= set(used["documents"])
    card = (tmp_path / "edited" / "README.md").read_text()
    assert "under `chosen_on` in `receipt.json`" in card and f"({len(exported['chosen_on'])} hashes, one a line" in card
    assert hashlib.sha256("".join(f"{one}\n" for one in exported["chosen_on"]).encode()).hexdigest() in card
    assert "needs `chosen_on` and `wordings` from there" in card and set(exported["wordings"]) == {"same"}
    assert len(re.findall(r"\b[0-9a-f]{16,}\b", card)) == 1
    ran = demo_run(
        "--recipe", "baseline", *here, "--model_args", f"pretrained={tmp_path / 'edited'}", tasks="same", limit=80
    )
    assert "same: 20 of 80 documents are out of every score" in ran.err


@pytest.mark.slow
def test_a_run_that_scores_what_was_chosen_on_in_other_words_says_so(demo_run, lm_eval, tmp_path: Path) -> None:
    """`int_mult_clean` asks the products of `int_mult` in a sentence."""
    search = "laser-search:calibration.split=test,calibration.samples=20,calibration.task=int_mult_clean"
    together = demo_run("--recipe", search, tasks="int_mult,int_mult_clean", limit=60).err
    said = "scored documents of int_mult ask for the same as calibration documents of int_mult_clean in other words"
    (sentence,) = {line.partition(": ")[2] for line in together.splitlines() if said in line}

    ran = demo_run("--recipe", search, "--output_path", "first", tasks="int_mult_clean", limit=60)
    assert ran.code == 0 and "in other words" not in ran.err
    (place,) = tmp_path.glob("first/demo/laser-search*")
    (used,) = json.loads((place / "receipt.json").read_text())["calibration"]
    shown = lm_eval("recipes", "show", "--from", place).out
    (tmp_path / "found.yaml").write_text(shown)
    assert len(used["wordings"]) == 20 and all(signs in shown for signs in used["wordings"])
    for kept in (False, True):
        ran = demo_run("--recipe", "found.yaml", "--output_path", "second", limit=60)
        assert ran.code == 0 and ("laser-search-found: kept from" in ran.err) == kept
        assert f"laser-search-found: {sentence}" in ran.err and "baseline: 2" not in ran.err
    (place,) = tmp_path.glob("second/demo/laser-search-found*")
    receipt = json.loads((place / "receipt.json").read_text())
    assert sentence in receipt["warnings"]
    assert lm_eval("recipes", "show", "--from", place).out.count("wordings:") == 1

    # A file from before has no wordings, is the same recipe, and says nothing.
    data = yaml.safe_load(shown)
    learned = data.pop("wordings")
    (tmp_path / "before.yaml").write_text(yaml.safe_dump(data))
    assert parse_recipe(str(tmp_path / "before.yaml")).recipe_id == parse_recipe(str(tmp_path / "found.yaml")).recipe_id
    ran = demo_run("--recipe", "before.yaml", "--output_path", "third", limit=60)
    assert ran.code == 0 and "in other words" not in ran.err

    for recipe, out in (("found.yaml", "edited"), ("before.yaml", "edited before")):
        assert lm_eval("export", "--model_args", "pretrained=demo", "--recipe", recipe, "--out", out).code == 0
    assert json.loads((tmp_path / "edited" / "receipt.json").read_text())["wordings"] == learned
    for out, says in (("edited", True), ("edited before", False)):
        model = ("--model_args", f"pretrained={tmp_path / out}")
        ran = demo_run("--recipe", "baseline", *model, "--output_path", "fourth", limit=60)
        assert ran.code == 0 and (f"baseline: {sentence}" in ran.err) == says


@pytest.mark.slow
def test_the_plan_of_a_search(lm_eval) -> None:
    planned = lm_eval("recipes", "plan", "laser-search", "--model_args", "pretrained=demo")
    assert planned.code == 0 and "at most 48 trials among 6 matrices on 160 documents" in planned.out
    assert (
        "at most 1 trial among 14 matrices"
        in lm_eval("recipes", "plan", "zero-sum", "--model_args", "pretrained=demo").out
    )
    assert (
        "at most 77 trials among 7 matrices"
        in lm_eval("recipes", "plan", "sfsd-surgical:skip_blocks=1", "--model_args", "pretrained=demo").out
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "laser-search",
        "laser-compose",
        "laser-gradient",
        "laser-gradient:clusters=[1,2,5000],refined=2,layers=[0]",
        "sfsd-surgical",
        "sfsd-surgical:skip_blocks=1",
        "zero-sum",
    ],
)
def test_a_search_does_no_more_than_its_plan_says(make_lm, make_model, family: str, recipe: str) -> None:
    # Of a mixture the attention: a search cannot try edits of experts.
    parsed = parse_recipe(
        recipe + ("," if ":" in recipe else ":") + "matrices=[attn]" if family in MIXTURES else recipe
    )
    (planned,) = plan(parsed, read_checkpoint(str(make_model(family)))).searches
    lm = make_lm(family)
    (record,) = lm.apply(parsed, drawing(documents_for(lm, 60))).searches
    lm.undo()
    assert record["planned"] == planned.trials >= len(record["trials"]) > 0
    assert record["forward_passes"] <= planned.passes + 0.5
    # Which matrices are the promising ones, and how large their grids, is not known before.
    assert recipe.startswith("laser-gradient") or len(record["trials"]) == planned.trials


# What a user can get wrong.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            "laser-search:fractions=[1.0]",
            "nothing to try: no setting of this search changes any of the 6 chosen matrices",
        ),
        ("laser-search:fractions=[]", "steps.0.fractions: list should have at least 1 item, and has none"),
        ("laser-search:fractions=[0.5,0]", "steps.0.fractions.1: input should be greater than 0"),
        ("laser-search:fraction=[0.5]", "unknown key 'fraction', did you mean 'fractions'"),
        ("laser-search:layers=[7]", "layers: 7 is outside 0 to 1"),
        (
            "laser-search:calibration.samples=900",
            "900 documents of 'int_mult' were asked for, and its train split has 320",
        ),
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
    missing = lm_eval("recipes", "show", "--from", tmp_path / "none")
    assert missing.code == 2 and f"--from {tmp_path / 'none'}: there is nothing at this path" in missing.err
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in lm_eval("recipes", "show", "--from", tmp_path / "empty").err
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
    work = ResumeState(tmp_path / "work")
    with pytest.raises(VariantFailed, match="of the 36 trials none has a finite loss") as failed:
        lm.apply(step, drawing(documents), resume=work)
    (record,) = failed.value.searches
    assert len(record["trials"]) == 36 and {trial["loss"] for trial in record["trials"]} == {None}
    assert sum(len(row["trials"]) for row in work.part("step-0").rows("trials")) == 36
    with pytest.raises(VariantFailed, match="loss of the unedited model"):
        lm.apply(step, drawing(documents))
    handle.remove()


def test_ranks_must_be_there_for_every_matrix(make_lm) -> None:
    lm = make_lm("llama")
    data = {
        "name": "r",
        "steps": [
            {
                "method": "truncate_svd",
                "matrices": ["down_proj"],
                "keep": {"ranks": {"model.layers.0.mlp.down_proj.weight": 2}},
            }
        ],
    }
    with pytest.raises(UserError, match=r"model.layers.1.mlp.down_proj.weight: keep.ranks has no rank for it"):
        lm.apply(recipe_from(data, origin="r"), lambda calibration: [])
    with pytest.raises(RecipeError, match="exactly one of rank, rank_fraction, energy, param_fraction, ranks"):
        parse_recipe("svd:keep.rank=3,keep.ranks={a: 1}")
