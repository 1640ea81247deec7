"""The front door in Python: recipes on a loaded model, undone bit for bit; plans and exports; what is public."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import harness_ext as recipes
from harness_ext.calibration.documents import document_hash
from harness_ext.demo import demo_path
from harness_ext.errors import RecipeError, UserError
from harness_ext.recipe.recipe import parse_recipe

PAIRS = [(f"w{number} w{number + 1}", f" w{number + 2}") for number in range(8)]
TEXTS = [" ".join(f"w{(number * step) % 40}" for number in range(1, 12)) for step in range(1, 7)]
TOKENS = torch.arange(3, 15).reshape(2, 6)


@pytest.fixture
def loaded(make_model: Callable[..., Path]) -> Callable[..., tuple]:
    """A tiny model as any user loads one, and its tokenizer: `loaded("llama")`."""

    def load(family: str, *, dtype: str = "float32"):
        folder = make_model(family, dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return model, PreTrainedTokenizerFast.from_pretrained(folder)

    return load


@pytest.fixture(scope="module")
def demo():
    """The embedded model, loaded by plain transformers, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(demo_path()), AutoTokenizer.from_pretrained(demo_path())


def snapshot(model) -> tuple[dict, dict, dict]:
    """All that undoing must bring back: values, the parameter objects, and modes and switches."""
    values = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: (type(module), module.training) for name, module in model.named_modules()}
    return values, {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}, modes


def assert_as_before(model, before: tuple[dict, dict, dict]) -> None:
    values, parameters, modes = snapshot(model)
    assert list(values) == list(before[0])
    assert all(torch.equal(value, before[0][name]) for name, value in values.items())
    assert (parameters, modes) == before[1:]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


# apply


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("specification", ["svd:keep.rank=3", "svd:keep.rank=3,factored=true", "noise"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_recipe_that_learns_nothing_needs_a_model_alone(loaded, family: str, dtype: str, specification: str) -> None:
    model, _ = loaded(family, dtype=dtype)
    model.train()
    before, unedited = snapshot(model), logits(model.eval())
    model.train()
    with recipes.apply(model, specification) as applied:
        assert model.training and applied.model is model
        assert not torch.equal(logits(model.eval()), unedited)
        assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}
        model.train()
    assert_as_before(model, before)


def test_the_model_generates_inside_and_afterwards_as_before(demo) -> None:
    model, tokenizer = demo
    asked = tokenizer("3 times 4 is", return_tensors="pt")

    def written() -> tuple:
        made = model.generate(
            **asked, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return made.sequences, torch.stack(made.logits)

    before = written()
    with recipes.apply(model, "laser"):
        inside = written()
    after = written()
    assert not torch.equal(inside[1][0], before[1][0])
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


def test_identity_changes_no_answer(loaded) -> None:
    model, _ = loaded("gpt2")
    expected = logits(model)
    with recipes.apply(model, "identity") as applied:
        torch.testing.assert_close(logits(model), expected, atol=1e-3, rtol=1e-3)
        assert (applied.matrices.rank_after == applied.matrices.rank_before).all()
    assert torch.equal(logits(model), expected)


def test_matrices_and_receipt_say_what_was_done(loaded) -> None:
    model, _ = loaded("llama")
    with recipes.apply(model, "svd:keep.rank=3,matrices=[up_proj]") as applied:
        frame, receipt = applied.matrices, applied.receipt
    assert list(frame.name) == [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    assert list(frame.role) == ["up_proj"] * 3 and list(frame.layer) == [0, 1, 2]
    assert list(frame["shape"]) == [(40, 24)] * 3
    assert list(frame.rank_before) == [24] * 3 and list(frame.rank_after) == [3] * 3
    # Of a truncation, what is kept and what is lost add up to the whole.
    torch.testing.assert_close(
        torch.tensor((frame.energy_kept + frame.relative_error**2).tolist()), torch.ones(3), atol=1e-4, rtol=0
    )
    assert receipt["recipe"]["label"] == "svd:keep.rank=3,matrices=[up_proj]"
    assert receipt["weights"]["digest_before"] != receipt["weights"]["digest_after"]
    assert receipt["totals"]["matrices_edited"] == 3 and receipt["calibration"] == [] == receipt["searches"]
    assert receipt["versions"]["torch"] and json.dumps(receipt)


@pytest.mark.slow
def test_the_receipt_has_the_keys_of_a_run_as_far_as_nothing_was_scored(loaded, demo_run, tmp_path: Path) -> None:
    assert demo_run("--recipe", "laser", limit=4).code == 0
    (path,) = tmp_path.glob("results/demo/laser-*/receipt.json")
    of_run = json.loads(path.read_text())
    with recipes.apply(loaded("llama")[0], "laser") as applied:
        missing = of_run.keys() - applied.receipt.keys()
        assert applied.receipt.keys() <= of_run.keys()
        assert applied.receipt["matrices"][0].keys() == of_run["matrices"][0].keys()
    assert missing == {"spec_id", "settings_id", "command", "seeds", "settings", "tasks", "files", "speed", "ran_on"}


def test_an_exception_in_the_block_undoes_the_recipe(loaded) -> None:
    model, _ = loaded("gpt2")
    before = snapshot(model)
    with pytest.raises(KeyError), recipes.apply(model, "svd:keep.rank=2"):
        raise KeyError
    assert_as_before(model, before)


def test_a_failure_while_applying_leaves_the_model_as_it_was(loaded) -> None:
    model, _ = loaded("llama")
    # The first step edits layers 0 and 1, and the second meets a weight that is not finite.
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = torch.inf
    before = snapshot(model)
    data = {
        "name": "two-steps",
        "steps": [
            {"method": "truncate_svd", "matrices": ["up_proj"], "keep": {"rank": 2}},
            {"method": "truncate_svd", "matrices": ["down_proj"], "keep": {"rank": 2}},
        ],
    }
    with pytest.raises(UserError, match="'two-steps' cannot be applied to this model: .*not"):
        recipes.apply(model, data)
    assert_as_before(model, before)
    # And the model can be edited as before.
    with recipes.apply(model, "svd:keep.rank=2,matrices=[up_proj]"):
        pass
    assert_as_before(model, before)


def test_biases_that_a_recipe_adds_go_with_it(loaded) -> None:
    model, tokenizer = loaded("llama")
    before = snapshot(model)
    with recipes.apply(
        model, "sfsd:keep.param_fraction=0.7,matrices=[up_proj]", tokenizer=tokenizer, texts=TEXTS
    ) as applied:
        assert model.model.layers[0].mlp.up_proj.bias is not None
        assert all(row["bias_shift"] for row in applied.receipt["matrices"])
    assert_as_before(model, before)


@pytest.mark.parametrize("mode", [True, False])
def test_documents_are_learned_from(loaded, mode: bool) -> None:
    model, tokenizer = loaded("llama")
    model.train(mode)
    before, pad = snapshot(model), tokenizer.pad_token
    with recipes.apply(model, "ablation-prune", tokenizer=tokenizer, documents=PAIRS, batch_size=3) as applied:
        assert model.training is mode
        (drawn,) = applied.receipt["calibration"]
        assert (drawn["task"], drawn["split"], drawn["samples"]) == ("documents", "given", len(PAIRS))
        assert drawn["documents"] == [document_hash(list(pair)) for pair in PAIRS]
        (step,) = applied.receipt["recipe"]["resolved"]["steps"]
        assert step["calibration"]["batch_size"] == 3 and step["calibration"]["samples"] == len(PAIRS)
    assert_as_before(model, before)
    assert tokenizer.pad_token == pad


def test_what_is_learned_from_documents_is_what_a_run_learns_from_the_same(loaded) -> None:
    """The API must hand documents over as the engine gets them from tasks."""
    from harness_ext.calibration.documents import CalibrationSet, LabelledDocument
    from harness_ext.lm_eval_adapter.loaded_model import LoadedModel

    model, tokenizer = loaded("gpt2")
    with recipes.apply(model, "fwsvd:keep.param_fraction=0.5", tokenizer=tokenizer, documents=PAIRS) as applied:
        ours = applied.receipt["weights"]["digest_after"]
    documents = tuple(LabelledDocument("t", *pair, "") for pair in PAIRS)
    lm = LoadedModel(model, tokenizer)
    lm.apply(parse_recipe("fwsvd:keep.param_fraction=0.5"), lambda *_: [CalibrationSet("t", "train", 0, documents)])
    theirs = lm.weights.digest()
    lm.undo()
    assert ours == theirs


@pytest.mark.parametrize("specification", ["svd-llm:keep.param_fraction=0.5", "fwsvd:keep.param_fraction=0.5"])
def test_a_prompt_of_blanks_alone_is_read_with_its_answer(loaded, specification: str) -> None:
    """Blanks at a prompt's end belong to the answer, as in lm-eval, so that no token of the prompt is left."""
    model, tokenizer = loaded("llama")
    digests = set()
    for pair in ((" ", " w1 w2 w3"), ("", "  w1 w2 w3")):
        with recipes.apply(model, specification, tokenizer=tokenizer, documents=[pair, *PAIRS]) as applied:
            digests.add(applied.receipt["weights"]["digest_after"])
    assert len(digests) == 1


def test_texts_are_enough_for_a_recipe_that_needs_no_answers(loaded) -> None:
    model, tokenizer = loaded("llama")
    before = snapshot(model)
    with recipes.apply(model, "svd-llm", tokenizer=tokenizer, texts=TEXTS) as applied:
        (drawn,) = applied.receipt["calibration"]
        assert drawn["task"] == "texts" and drawn["documents"] == [document_hash(text) for text in TEXTS]
        with_texts = applied.receipt["weights"]["digest_after"]
    with recipes.apply(model, "svd-llm", tokenizer=tokenizer, texts=TEXTS[:3]) as applied:
        assert applied.receipt["weights"]["digest_after"] != with_texts
    assert_as_before(model, before)


def test_a_search_on_documents(loaded) -> None:
    model, tokenizer = loaded("llama")
    before = snapshot(model)
    specification = "laser-search:matrices=[up_proj],fractions=[0.5,0.1]"
    with recipes.apply(model, specification, tokenizer=tokenizer, documents=PAIRS) as applied:
        (record,) = applied.receipt["searches"]
        assert record["documents"] == len(PAIRS) and len(record["trials"]) == 6
        assert len(applied.matrices) == len(record["chosen"])
    assert_as_before(model, before)


@pytest.mark.slow
def test_tasks_give_the_documents_that_a_run_would_draw(demo, demo_run, tmp_path: Path) -> None:
    model, tokenizer = demo
    recipe = "ablation-prune:calibration.samples=24"
    assert demo_run("--recipe", recipe, limit=8).code == 0
    (path,) = tmp_path.glob("results/demo/ablation-prune*/receipt.json")
    of_run = json.loads(path.read_text())
    before = snapshot(model)
    with recipes.apply(model, recipe, tokenizer=tokenizer, tasks=["int_mult"]) as applied:
        assert applied.receipt["calibration"] == of_run["calibration"]
        assert applied.receipt["recipe_id"] == of_run["recipe_id"]
        assert applied.receipt["weights"] == of_run["weights"]
    assert_as_before(model, before)


def test_shuffled_labels_are_those_of_other_documents(loaded) -> None:
    model, tokenizer = loaded("gpt2")
    plain = "fwsvd:keep.param_fraction=0.5"
    shuffling = f"{plain},calibration.shuffled_labels=true"
    with recipes.apply(model, shuffling, tokenizer=tokenizer, documents=PAIRS) as applied:
        assert applied.receipt["calibration"][0]["shuffled_labels"]
        shuffled = applied.receipt["weights"]["digest_after"]
    with recipes.apply(model, plain, tokenizer=tokenizer, documents=PAIRS) as applied:
        assert applied.receipt["weights"]["digest_after"] != shuffled


def test_the_seed_is_that_of_all_that_is_drawn(loaded) -> None:
    model, _ = loaded("llama")

    def digest(**settings: int) -> str:
        with recipes.apply(model, "noise", **settings) as applied:
            assert applied.recipe.steps[0].seed == settings.get("seed", 0)
            return applied.receipt["weights"]["digest_after"]

    assert digest() == digest(seed=0) != digest(seed=1)


def test_a_second_recipe_waits_for_the_first_to_be_undone(loaded) -> None:
    model, _ = loaded("llama")
    before = snapshot(model)
    with recipes.apply(model, "laser") as applied:
        with pytest.raises(UserError, match="the model has 'laser' applied: leave that block"):
            recipes.apply(model, "svd")
        inside = applied.receipt["weights"]["digest_after"]
        applied.undo()
        applied.undo()
        assert_as_before(model, before)
        with recipes.apply(model, "laser") as again:
            assert again.receipt["weights"]["digest_after"] == inside
    assert_as_before(model, before)


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        ("svd-llm", {}, r"give documents=\[\(prompt, answer\), ...\], texts=\[...\] or tasks="),
        ("svd-llm", {"texts": TEXTS, "tokenizer": None}, "give its tokenizer"),
        ("contrast-projection", {"tokenizer": None}, "give its tokenizer"),
        ("svd-llm", {"texts": TEXTS, "documents": PAIRS}, "documents and texts are given"),
        ("laser-search", {"texts": TEXTS}, "learns from right answers"),
        ("svd-llm", {"texts": "one text"}, "texts must be a list of texts"),
        ("svd-llm", {"texts": []}, "texts is empty"),
        ("svd-llm", {"texts": ["w1 " * 100]}, r"texts\[0\] has 100 tokens to predict, and the model reads 64"),
        ("ablation-prune", {"documents": ["w1"]}, "documents must be pairs of texts"),
        ("ablation-prune", {"documents": [("w1", "")]}, "an answer of no tokens"),
        ("svd-llm", {"tasks": ["int_mul"]}, "no task is called 'int_mul'; did you mean int_mult"),
        ("svd-llm", {"tasks": []}, "tasks is empty"),
        ("svd-llm", {"texts": TEXTS, "batch_size": 0}, "batch_size"),
        ("lasr", {}, "unknown recipe 'lasr': did you mean 'laser'"),
        ("svd:keep.rank=500", {}, "500"),
    ],
)
def test_mistakes_leave_the_model_as_it_was(loaded, recipe: str, given: dict, words: str) -> None:
    model, tokenizer = loaded("llama")
    before = snapshot(model)
    with pytest.raises(UserError, match=words):
        recipes.apply(model, recipe, **{"tokenizer": tokenizer, **given})
    assert_as_before(model, before)


def test_only_a_loaded_model_without_an_adapter_is_taken(loaded) -> None:
    model, _ = loaded("llama")
    with pytest.raises(UserError, match=r"a loaded transformers model is needed, not str: load it first"):
        recipes.apply("gpt2", "svd")  # type: ignore[arg-type]
    model._hf_peft_config_loaded = True
    with pytest.raises(UserError, match="the model has an adapter"):
        recipes.apply(model, "svd")


def test_a_setting_that_there_is_not(loaded) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'batchsize'; did you mean 'batch_size'\?"):
        recipes.apply(loaded("llama")[0], "svd", batchsize=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("specification", ["svd:keep.rank=3", "svd:keep.rank=3,factored=true"])
def test_a_model_whose_dtype_was_changed_cannot_be_restored(loaded, specification: str) -> None:
    model, _ = loaded("llama")
    with (
        pytest.raises(UserError, match=r"its dtype was changed from float32 to bfloat16 .*; reload the model"),
        recipes.apply(model, specification),
    ):
        model.bfloat16()


def test_a_model_that_could_not_be_restored_is_not_taken_for_edited(loaded) -> None:
    model, _ = loaded("llama")
    applied = recipes.apply(model, "svd:keep.rank=3")
    model.bfloat16()
    with pytest.raises(UserError, match="reload the model"):
        applied.undo()
    before = snapshot(model)
    with recipes.apply(model, "svd:keep.rank=2"):
        pass
    assert_as_before(model, before)


@pytest.mark.parametrize("given", [{"texts": TEXTS}, {"documents": PAIRS}, {"tasks": ["int_mult"]}])
def test_what_a_recipe_does_not_learn_from_is_told(loaded, given: dict) -> None:
    model, tokenizer = loaded("llama")
    with pytest.warns(UserWarning, match=f"'laser' learns from no documents: {next(iter(given))} is not used") as told:
        recipes.apply(model, "laser", tokenizer=tokenizer, **given).undo()
    assert [Path(warning.filename).name for warning in told] == [Path(__file__).name]


# plan, export, load_recipe


@pytest.mark.slow
def test_a_plan_is_the_commands(lm_eval) -> None:
    planned = recipes.plan("svd:keep.rank=2", pretrained="demo")
    printed = lm_eval("recipes", "plan", "svd:keep.rank=2", "--model_args", "pretrained=demo").out
    assert f"{planned.parameters:,} -> {planned.parameters_after:,}" in printed
    assert all(item.rank_after == 2 for item in planned.matrices)


def test_a_plan_of_a_folder_that_is_not_there() -> None:
    with pytest.raises(UserError, match="there is no model folder /no/such"):
        recipes.plan("svd", pretrained="/no/such")


@pytest.mark.parametrize(
    ("given", "meant"), [("revison", "revision"), ("devic", "device"), ("sub_folder", "subfolder")]
)
def test_a_misspelt_argument_of_a_model(tmp_path: Path, given: str, meant: str) -> None:
    words = f"unexpected keyword argument '{given}'; did you mean '{meant}'?"
    with pytest.raises(TypeError, match=re.escape(f"plan() got an {words}")):
        recipes.plan("svd", pretrained="demo", **{given: "x"})
    with pytest.raises(TypeError, match=re.escape(f"export() got an {words}")):
        recipes.export("svd", tmp_path / "out", pretrained="demo", **{given: "x"})


@pytest.mark.slow
def test_arguments_that_lm_eval_and_transformers_take_are_no_mistakes() -> None:
    import inspect

    from lm_eval.models.huggingface import HFLM

    taken = {name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "pretrained")}
    for name in (taken - {"kwargs"}) | {
        "device_map",
        "attn_implementation",
        "load_in_4bit",
        "num_labels",
        "rope_theta",
    }:
        assert recipes.plan("svd:keep.rank=2", pretrained="demo", **{name: None}).matrices


def test_an_export_reloads_to_the_applied_model(loaded, tmp_path: Path, capfd) -> None:
    model, tokenizer = loaded("llama")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with recipes.apply(model, "svd-llm", tokenizer=tokenizer, texts=TEXTS):
        expected = logits(model)
    out = recipes.export("svd-llm", tmp_path / "out", pretrained=str(tmp_path / "model"), dtype="float32", texts=TEXTS)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), expected)
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["calibration"][0]["task"] == "texts"
    (command,) = receipt["command"]
    assert command == (
        f"harness_ext.export('svd-llm', {str(out)!r}, pretrained={str(tmp_path / 'model')!r}, dtype='float32',"
        " texts=[... 6 texts])"
    )
    assert command in (out / "README.md").read_text()
    with pytest.raises(UserError, match="exists already"):
        recipes.export("svd", out, pretrained=str(tmp_path / "model"))
    with pytest.raises(UserError, match="give documents="):
        recipes.export("svd-llm", tmp_path / "other", pretrained=str(tmp_path / "model"))


def test_a_recipe_from_a_name_data_a_file_or_itself(tmp_path: Path) -> None:
    import yaml

    named = recipes.load_recipe("laser:keep.rank=4")
    data = named.resolved()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    for other in (data, tmp_path / "mine.yaml", str(tmp_path / "mine.yaml"), named):
        assert recipes.load_recipe(other).recipe_id == named.recipe_id
    with pytest.raises(RecipeError, match="unknown key"):
        recipes.load_recipe({**data, "stepz": []})
    with pytest.raises(TypeError, match="a recipe is a name, a path, a mapping or a Recipe, not NoneType"):
        recipes.load_recipe(None)  # type: ignore[arg-type]


# What is public


def test_every_public_name_resolves_and_is_documented() -> None:
    assert recipes.__all__ == [
        *("UserError", "apply", "export", "load_recipe", "plan", "register_backend", "run", "task_manager")
    ]
    assert set(recipes.__all__) <= set(dir(recipes))
    for name in recipes.__all__:
        assert getattr(recipes, name).__doc__.strip(), name
    assert "int_mult" in recipes.task_manager().all_tasks
    with pytest.raises(AttributeError, match="has no attribute 'aply'"):
        recipes.aply  # noqa: B018 - the lookup is what is tested


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["", "harness_ext.load_recipe('svd-llm')", "from harness_ext import *"])
def test_the_import_is_light(statement: str) -> None:
    code = (
        f"import sys, harness_ext\n{statement}\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'duckdb', 'datasets') if name in sys.modules])\n"
        "from lm_eval.api.registry import model_registry\nassert 'hf-recipe' in model_registry"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("name", ["load_recipe", "plan"])
def test_the_examples_of_the_docstrings(name: str) -> None:
    import doctest

    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(recipes, name), globs=vars(recipes))
    assert len(example.examples) == 1 and doctest.DocTestRunner().run(example).failed == 0


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = repository / "tests" / "notebooks" / "quickstart.ipynb"
    assert all(not cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"])
    namespace: dict[str, object] = {}
    for number, source in enumerate(code_cells(notebook)):
        exec(compile(source, f"cell {number}", "exec"), namespace)
    assert {"score", "verdict", "control_verdict"} <= set(namespace["frame"].columns)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_python_of_the_readme_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (repository / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    if not blocks:
        pytest.skip("README.md has no block of Python")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block.partition("```")[0], namespace)
