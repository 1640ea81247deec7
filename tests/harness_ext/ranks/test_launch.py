"""What is refused of several processes before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.admission import check_cut
from harness_ext.ranks.launch import check_all_started, check_model, check_nodes, launched
from harness_ext.recipe.recipe import parse_recipe
from harness_ext.runs.run_config import harness_config, recipe_run_config

TWO = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_one_process_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == (0, 1)
    check_nodes()
    check_model("vllm", {"parallelize": True})


def test_the_launcher_says_which_rank_this_is(two: pytest.MonkeyPatch) -> None:
    assert launched() == (1, 2)
    check_nodes()
    check_all_started()
    check_model("hf", {"pretrained": "demo"})


@pytest.mark.parametrize("changed", [{"GROUP_WORLD_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "1"}])
def test_several_machines_are_refused(two: pytest.MonkeyPatch, changed: dict[str, str]) -> None:
    for name, value in changed.items():
        two.setenv(name, value)
    with pytest.raises(UserError, match=r"2 processes are on several machines.*`lm_eval sweep`"):
        check_nodes()


@pytest.mark.parametrize("address", [None, "127.0.0.1"])
def test_one_process_where_accelerate_was_asked_for_several(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """`accelerate launch --cpu --num_processes 2`, and without the number."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    if address is None:
        check_all_started()
        return
    monkeypatch.setenv("MASTER_ADDR", address)
    with pytest.raises(
        UserError, match=r"asked for several processes, and this one is told of no other: add --multi_gpu"
    ):
        check_all_started()


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "-1"), ("WORLD_SIZE", "2.0")])
def test_an_environment_that_says_nothing(two: pytest.MonkeyPatch, name: str, value: str) -> None:
    two.setenv(name, value)
    with pytest.raises(UserError, match=rf"{name}={value} in the environment is no number of processes: unset it"):
        launched()


def test_half_an_environment(two: pytest.MonkeyPatch) -> None:
    two.delenv("RANK")
    two.delenv("MASTER_PORT")
    with pytest.raises(UserError, match=r"several processes \(2\), and RANK, MASTER_PORT is not set"):
        launched()


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("vllm", {}, "vllm starts processes of its own, and this is one of 2 already.*tensor_parallel_size"),
        ("sglang", {}, "sglang starts processes of its own"),
        ("hf", {"parallelize": True}, "parallelize spreads one model over all devices, and each of 2 processes would"),
        ("hf", {"device_map": "auto"}, "device_map spreads one model"),
    ],
)
def test_what_several_processes_cannot_load(
    two: pytest.MonkeyPatch, model: str, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        check_model(model, arguments)


def test_pieces_need_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=r"this is one: start the command by torchrun --nproc_per_node N"):
        check_model("hf", {"tp_plan": "auto"})


def test_python_is_one_process(two: pytest.MonkeyPatch) -> None:
    asked = harness_config({"model": "hf", "model_args": {"pretrained": "demo"}, "tasks": ["int_sum"]})
    with pytest.raises(UserError, match=r"harness_ext.run is one process.*accelerate launch -m harness_ext run"):
        recipe_run_config(asked, ["svd"], [], ())


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("laser-search", r"'laser-search' learns from documents.*export --layers_on.*recipes show --from RUN"),
        ("svd-llm", "'svd-llm' learns from documents"),
        ("sfsd", "'sfsd' learns from documents"),
        ("svd:factored=true", "two low-rank layers.*factored=false"),
    ],
)
def test_what_needs_whole_matrices(recipe: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_cut({"pretrained": "demo", "tp_plan": "auto"}, [parse_recipe(recipe)])


@pytest.mark.parametrize(("device", "told"), [("cpu", "cpu"), ("cuda:1", "cuda"), ("mps", "mps")])
def test_advice_is_for_the_device_asked(device: str, told: str) -> None:
    with pytest.raises(UserError, match=f"--layers_on {told} "):
        check_cut({"pretrained": "demo", "tp_plan": "auto"}, [parse_recipe("asvd")], device)


def test_the_embedded_model_keeps_its_name() -> None:
    with pytest.raises(UserError, match="--model_args pretrained=demo --recipe svd-llm"):
        check_cut({"pretrained": str(demo_path()), "tp_plan": "auto"}, [parse_recipe("svd-llm")])


@pytest.mark.parametrize("recipe", ["svd", "magnitude", "laser", "random-subspace"])
def test_what_needs_none(recipe: str) -> None:
    check_cut({"pretrained": "demo", "tp_plan": "auto"}, [parse_recipe(recipe)])
    with pytest.raises(UserError, match="peft and tp_plan are both given"):
        check_cut({"pretrained": "demo", "tp_plan": "auto", "peft": "adapter"}, [parse_recipe(recipe)])
