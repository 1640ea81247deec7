"""Searches against the plain loops that they replace: every trial edits the weights, runs every calibration document
through the whole model, and restores.

The plain loop is written here from the definition. Both see the same documents, and must find the same winner. Seconds
are of the processor, not of the clock, and both run in one go, so that the ratios hold on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.benchmark

FRACTIONS = (0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.01)
BATCH = 16


class Winner(NamedTuple):
    """The best edit of a loop, and how long the loop took."""

    key: str
    fraction: float
    seconds: float
    candidates: int


def plain_loop(lm, documents, matrices, batch_size: int, fractions: Sequence[float] = FRACTIONS) -> Winner:
    """Truncate, score all documents in batches of full logits, restore; for every matrix and fraction. The best
    accuracy, then the lower loss, then the first.
    """
    import torch

    batches = padded(lm, documents, batch_size)
    started = time.process_time()
    best: tuple[tuple[float, float], str, float] | None = None
    for matrix in matrices:
        module = lm.model.get_submodule(matrix.module)
        original = module.weight.detach().clone()
        for fraction in fractions:
            u, s, vh = torch.linalg.svd(original, full_matrices=False)
            rank = max(1, int(fraction * len(s) + 1e-9))
            with torch.no_grad():
                module.weight.copy_((u[:, :rank] * s[:rank]) @ vh[:rank])
            correct, loss = score(lm.model, batches)
            with torch.no_grad():
                module.weight.copy_(original)
            if best is None or (-correct, loss) < best[0]:
                best = (-correct, loss), matrix.key, fraction
    assert best is not None
    return Winner(best[1], best[2], time.process_time() - started, len(matrices) * len(fractions))


def padded(lm, documents, batch_size: int) -> list:
    import torch

    encoded = [lm._encode_pair(document.context, document.answer) for document in documents]
    batches = []
    for start in range(0, len(encoded), batch_size):
        group = encoded[start : start + batch_size]
        width = max(len(context) + len(answer) - 1 for context, answer in group)
        tokens, labels = torch.zeros(len(group), width, dtype=torch.long), torch.full((len(group), width), -100)
        for row, (context, answer) in enumerate(group):
            whole = torch.tensor((context + answer)[:-1])
            tokens[row, : len(whole)] = whole
            labels[row, len(whole) - len(answer) : len(whole)] = torch.tensor(answer)
        batches.append((tokens, labels))
    return batches


def score(model, batches) -> tuple[int, float]:
    import torch
    from torch.nn.functional import cross_entropy

    correct, losses = 0, 0.0
    with torch.no_grad():
        for tokens, labels in batches:
            logits = model(input_ids=tokens, use_cache=False).logits.float()
            wanted = labels != -100
            correct += int(((logits.argmax(-1) == labels) | ~wanted).all(1).sum())
            per_token = cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
            losses += float((per_token.sum(1) / wanted.sum(1)).sum())
    return correct, losses / sum(len(tokens) for tokens, _ in batches)


def searched(lm, documents, specification: str) -> tuple[dict, float]:
    """The record of a search, and its seconds from the recipe to the chosen step, editing left out."""
    from harness_ext.calibration.context import StepContext
    from harness_ext.linalg.decompose import Decomposer
    from harness_ext.progress import Progress
    from harness_ext.recipe.recipe import parse_recipe
    from harness_ext.search.runner import run_search

    step = parse_recipe(specification).steps[0]
    started = time.process_time()
    # No cache: every matrix is decomposed here.
    context = StepContext(replace(lm.editable, decomposer=Decomposer()), step, 0, Progress())
    found = run_search(context, lm.weights.layout.select(step), documents)
    return found.record, time.process_time() - started


def random_llama(folder: Path, words: int):
    """A Llama of 6 layers, d 512, of random weights, with a vocabulary of numbers; answers are the model's own for half
    of the documents, so that accuracies differ.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from harness_ext.lm_eval_adapter.backend import RecipeLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.5)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w0").save_pretrained(folder)
    return RecipeLM(str(folder), device="cpu", dtype="float32")


def made_up_documents(lm, count: int, words: int, seed: int = 0) -> list:
    import random

    import torch

    from harness_ext.calibration.documents import LabelledDocument

    draw = random.Random(seed)
    made = []
    for number in range(count):
        context = [draw.randrange(1, words) for _ in range(draw.randrange(8, 17))]
        with torch.no_grad():
            ranked = lm.model(torch.tensor([context])).logits[0, -1].argsort(descending=True)
        answer = int(ranked[0 if number % 2 else draw.randrange(1, 4)])
        made.append(LabelledDocument("made", " ".join(f"w{word}" for word in context), f" w{answer}", str(number)))
    return made


def demo_documents(tasks: Sequence[str], count: int, split: str = "train") -> tuple:
    from harness_ext.calibration.documents import PromptSettings, draw_documents
    from harness_ext.demo import demo_path
    from harness_ext.lm_eval_adapter.backend import RecipeLM
    from harness_ext.lm_eval_adapter.task_index import task_manager
    from harness_ext.recipe.settings import Calibration

    lm = RecipeLM(str(demo_path()), device="cpu")
    loaded = task_manager().load(list(tasks))["tasks"]
    sets = draw_documents(Calibration(task=tuple(tasks), samples=count, split=split), loaded, set(), PromptSettings())
    return lm, [document for drawn in sets for document in drawn.documents]


def compare(name: str, lm, documents, capsys, *, sampled: int) -> None:
    """Print and check the ratios. sampled: the loop of one document at a time is run on every so-manieth candidate, and
    its time multiplied; all of them do the same work.
    """
    from harness_ext.recipe.recipe import parse_recipe

    matrices = lm.weights.layout.select(parse_recipe("laser-search").steps[0])
    searched(lm, documents[:4], "laser-search")
    record, seconds = searched(lm, documents, "laser-search")
    batched = plain_loop(lm, documents, matrices, BATCH)
    singly = plain_loop(lm, documents, matrices[:: max(1, sampled)], 1)
    singly_seconds = singly.seconds * batched.candidates / singly.candidates
    (chosen,) = record["chosen"]
    dropped = sum(trial["dropped"] for trial in record["trials"])
    with capsys.disabled():
        print(
            f"\n{name}: {len(documents)} documents, {batched.candidates} trials, accuracy before"
            f" {record['before']['accuracy']:.2f}"
        )
        print(
            f"  laser-search                  {seconds:8.2f} s   {record['forward_passes']:.1f} passes, {dropped}"
            " trials dropped early"
        )
        print(f"  plain loop, batches of {BATCH}     {batched.seconds:8.2f} s   {batched.seconds / seconds:6.1f}x")
        print(
            f"  plain loop, one at a time     {singly_seconds:8.2f} s  "
            f" {singly_seconds / seconds:6.1f}x{f'   (from every {sampled}th matrix)' if sampled > 1 else ''}"
        )
    assert (chosen["matrices"], chosen["keep"]["rank_fraction"]) == ([batched.key], batched.fraction)
    assert batched.seconds >= 5 * seconds and singly_seconds >= 12 * seconds


def test_laser_search_random(tmp_path: Path, capsys) -> None:
    words = 8192
    lm = random_llama(tmp_path, words)
    compare("Llama of 6 layers, d 512", lm, made_up_documents(lm, 48, words), capsys, sampled=6)


def test_laser_search_demo(capsys) -> None:
    lm, documents = demo_documents(("int_mult", "int_sum"), 160)
    compare("the embedded model", lm, documents, capsys, sampled=1)


def held_out(lm, documents, key: str, weight) -> int:
    """How many of the documents are right with this matrix in the place of one of the model's."""
    import torch

    module = lm.model.get_submodule(key.rpartition(".")[0])
    original = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.copy_(weight)
    correct, _ = score(lm.model, padded(lm, documents, 64))
    with torch.no_grad():
        module.weight.copy_(original)
    return correct


def test_laser_gradient_demo(capsys) -> None:
    """100 documents and the gradient, against every matrix and rank on 1,000 documents; both winners on 2,000 that
    neither saw.
    """
    import torch

    from harness_ext.recipe.recipe import parse_recipe

    lm, thousand = demo_documents(("int_sum",), 1000)
    _, unseen = demo_documents(("int_sum",), 2000, "test")
    searched(lm, thousand[:8], "laser-gradient")
    record, seconds = searched(lm, thousand[:100], "laser-gradient")
    plain = plain_loop(lm, thousand, lm.weights.layout.select(parse_recipe("laser-gradient").steps[0]), BATCH)
    (chosen,) = record["chosen"]
    ours = held_out(lm, unseen, chosen["matrices"][0], edited(lm, chosen))
    u, s, vh = torch.linalg.svd(lm.model.get_parameter(plain.key).detach(), full_matrices=False)
    rank = max(1, int(plain.fraction * len(s) + 1e-9))
    theirs = held_out(lm, unseen, plain.key, (u[:, :rank] * s[:rank]) @ vh[:rank])
    share = [correct / len(unseen) for correct in (ours, theirs)]
    half = 1.96 * (sum(each * (1 - each) for each in share) / len(unseen)) ** 0.5
    with capsys.disabled():
        print(
            f"\nlaser-gradient on the embedded model: 100 documents, {len(record['trials'])} trials,"
            f" {record['forward_passes']:.1f} passes"
        )
        print(f"  laser-gradient                {seconds:8.2f} s   held out {share[0]:.3f}")
        print(
            f"  plain loop, 1,000 documents   {plain.seconds:8.2f} s   held out {share[1]:.3f}  "
            f" {plain.seconds / seconds:6.1f}x, {plain.candidates} candidates; half-width of the interval {half:.3f}"
        )
    # The embedded model has fourteen matrices, of which five are searched; the ratio grows with the number of matrices.
    assert plain.seconds >= 50 * seconds and share[0] >= share[1] - half


def test_laser_gradient_random(tmp_path: Path, capsys) -> None:
    """The same on a Llama of 6 layers. Of the plain loop one candidate of each shape is run, since all others do the
    same work.
    """
    from harness_ext.recipe.recipe import parse_recipe

    words = 8192
    lm = random_llama(tmp_path, words)
    thousand = made_up_documents(lm, 1000, words)
    matrices = lm.weights.layout.select(parse_recipe("laser-gradient").steps[0])
    record, seconds = searched(lm, thousand[:100], "laser-gradient")
    by_role = {matrix.role: matrix for matrix in matrices}
    each = {
        role: plain_loop(lm, thousand, [matrix], BATCH, (0.4,)).seconds
        for role, matrix in by_role.items()
        if role in ("o_proj", "up_proj", "down_proj")
    }
    alike = {"q_proj": "o_proj", "k_proj": "o_proj", "v_proj": "o_proj", "gate_proj": "up_proj"}
    plain = len(FRACTIONS) * sum(each[alike.get(matrix.role, matrix.role)] for matrix in matrices)
    with capsys.disabled():
        print(
            f"\nlaser-gradient on a Llama of 6 layers, d 512: 100 documents, {len(record['trials'])} trials,"
            f" {record['forward_passes']:.1f} passes"
        )
        print(f"  laser-gradient                {seconds:8.2f} s")
        print(
            f"  plain loop, 1,000 documents   {plain:8.2f} s   {plain / seconds:6.1f}x,"
            f" {len(matrices) * len(FRACTIONS)} candidates, from one of each shape"
        )
    # The gradient takes matrices of the first layer here, where a trial saves no layers below: the worst case.
    assert plain >= 50 * seconds


def edited(lm, step: dict):
    """The matrix that an ordinary step makes of the model's."""
    from harness_ext.recipe.recipe import recipe_from

    lm.apply(recipe_from({"name": "found", "steps": [step]}, origin="found"), lambda calibration: [])
    weight = lm.model.get_parameter(step["matrices"][0]).detach().clone()
    lm.undo()
    return weight
