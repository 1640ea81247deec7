"""A matrix that a model uses several times: statistics against references that see one document and one use at a time,
without padding, in float64.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from harness_ext.calibration import batches, collect
from harness_ext.calibration.context import DocumentBatches
from harness_ext.calibration.documents import LabelledDocument
from harness_ext.calibration.sinks import SeenTokens
from harness_ext.methods import Svd
from harness_ext.model.layout import Matrix

WORDS, WIDTH = 12, 5
FAR = 11
"""The token whose input is blown up, in the uses that are told to."""
# Of different lengths, so that batches are padded; the far token early, late, first, twice and not at all.
DOCUMENTS = [
    LabelledDocument("t", context, answer, context)
    for context, answer in [
        ("1 2 3 11 4 5 6", "7"),
        ("3 4 5 6 7 8 9 1 2", "10 1"),
        ("11 2 5 4 3", "3"),
        ("5 11 6 7 8 11 9 2 1 4", "2 6"),
    ]
]
MEANS = frozenset({"input_mean", "input_mean_with_sinks", "far_input_mean", "input_second_moment"})
GRADIENTS = frozenset({"fisher_information", "ablation_effects"})


class Repeated(nn.Module):
    """A model that uses one matrix once for each factor: by calling one block again and again, or, `tied`, by blocks
    that have their weight in common. The input of the far token is multiplied with the use's factor.
    """

    def __init__(self, factors: tuple[float, ...], tied: bool) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.dtype = torch.float64
        self.config = SimpleNamespace(model_type="repeated")
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in (factors if tied else (1,)))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.double()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        for block in self.blocks:
            block.weight = self.blocks[0].weight
        self.factors = factors

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        state = self.embedding(input_ids)
        for use, factor in enumerate(self.factors):
            blown = torch.where(input_ids == FAR, factor, 1.0)[..., None]
            # Tokens hear of earlier ones, so that a gradient reaches all of them.
            heard = (state * real[..., None]).cumsum(1)
            state = torch.tanh(self.blocks[use % len(self.blocks)](blown * torch.tanh(heard)))
        return SimpleNamespace(logits=self.head(state))


def lm_of(model: nn.Module) -> SimpleNamespace:
    def encode(text: str) -> list[int]:
        return [int(word) for word in text.split()]

    return SimpleNamespace(
        model=model,
        device="cpu",
        tokenizer=SimpleNamespace(pad_token_id=FAR),
        max_length=100,
        encode_pair=lambda context, answer: (encode(context), encode(answer)),
    )


class Use(NamedTuple):
    """One use by one document: inputs `[t, n]`, outputs and gradients at them `[t, m]`, and the places of its sinks and
    of the tokens far out.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    gradients: torch.Tensor
    sinks: set[int]
    far: set[int]


def uses_of(model: Repeated, document: LabelledDocument) -> list[Use]:
    inputs, outputs, zeros = [], [], []

    def hook(module, args, output):
        inputs.append(args[0].detach()[0])
        outputs.append(output.detach()[0])
        zeros.append(torch.zeros_like(output).requires_grad_(True))
        return output + zeros[-1]

    handles = [block.register_forward_hook(hook) for block in model.blocks]
    context, answer = ([int(word) for word in text.split()] for text in (document.context, document.answer))
    logits = model(torch.tensor([context + answer[:-1]])).logits[0, -len(answer) :]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor(answer)), zeros)
    for handle in handles:
        handle.remove()
    found = []
    for seen, made, gradient in zip(inputs, outputs, gradients, strict=True):
        norms = [float(norm) for norm in (seen**2).sum(1).sqrt()]
        median = sorted(norms[1:])[(len(norms) - 2) // 2]
        far = {place for place, norm in enumerate(norms) if norm > 6 * median}
        found.append(Use(seen, made, gradient[0], far | {0}, far))
    return found


def mean(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).mean(0)


def tokens(uses: list[Use], kind: str) -> list[tuple[Use, int]]:
    """Every token of every use that is of a kind."""
    wanted = {
        "every": lambda use, place: True,
        "ordinary": lambda use, place: place not in use.sinks,
        "far": lambda use, place: place in use.far,
    }[kind]
    return [(use, place) for use in uses for place in range(len(use.inputs)) if wanted(use, place)]


# One block in use once, twice and, as in ALBERT, everywhere; far out in every use, in the first alone and in the last.
@pytest.mark.parametrize("factors", [(300.0,), (300.0, 1.0), (1.0, 300.0), (300.0, 300.0), (1.0, 1.0, 300.0, 1.0)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_statistics_are_of_the_tokens_of_all_uses(factors: tuple[float, ...], tied: bool, size: int) -> None:
    model = Repeated(factors, tied)
    weight = model.blocks[0].weight.detach()
    also = tuple(f"blocks.{number}.weight" for number in range(1, len(model.blocks)))
    matrix = Matrix("blocks.0.weight", (WIDTH, WIDTH), role="down_proj", layer=0, also=also)
    u, s, vh = torch.linalg.svd(weight)
    documents = DocumentBatches(DOCUMENTS, size)

    def gathered(names: frozenset[str]) -> dict[str, torch.Tensor]:
        return collect.gather(lm_of(model), [matrix], names, documents, lambda _: Svd(u, s, vh))[matrix.key]

    by_document = [uses_of(model, document) for document in DOCUMENTS]
    uses = [use for of_document in by_document for use in of_document]
    assert {len(of_document) for of_document in by_document} == {len(factors)}
    every, ordinary, far = (tokens(uses, kind) for kind in ("every", "ordinary", "far"))
    # Nothing is far out where nothing was blown up, though it is in another use of the same matrix.
    for document, of_document in zip(DOCUMENTS, by_document, strict=True):
        blown = {place for place, word in enumerate(document.context.split()) if int(word) == FAR}
        assert [use.far for use in of_document] == [blown if factor > 1 else set() for factor in factors]
    center = mean([use.inputs[place] for use, place in ordinary])
    expected = {
        "input_mean": center,
        "input_mean_with_sinks": mean([use.inputs[place] for use, place in every]),
        "far_input_mean": mean([use.inputs[place] for use, place in far]),
        "input_second_moment": mean([use.inputs[place].outer(use.inputs[place]) for use, place in every]),
        # The gradient of a weight is the sum over its uses.
        "fisher_information": mean(
            [sum(use.gradients.T @ use.inputs for use in one).square().sum(0) for one in by_document]
        ),
        "ablation_effects": mean(
            [(u.T @ use.gradients[place]) * s * (vh @ (center - use.inputs[place])) for use, place in every]
        ),
    }
    typical = mean([use.outputs[place].norm() for use, place in ordinary])
    for names in (MEANS, MEANS | GRADIENTS):
        found = gathered(names)
        for name in names:
            torch.testing.assert_close(
                found[name].double(),
                expected[name],
                rtol=2e-4,
                atol=1e-5,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        seen = SeenTokens.of(found)
        assert seen is not None and seen[:2] == (len(every), len(every) - len(ordinary))
        assert seen.typical_output == pytest.approx(float(typical), rel=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_statistics_see_the_same_whichever_side_is_padded(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Those that compare documents as well: the last token of one with that of another."""
    model = Repeated((300.0, 1.0), tied=False)
    u, s, vh = torch.linalg.svd(model.blocks[0].weight.detach())
    matrix = Matrix("blocks.0.weight", (WIDTH, WIDTH), role="down_proj", layer=0)
    sides = []

    def padded(lm, documents, real=batches.pad):
        batch = real(lm, documents)
        sides.append((bool(batch.mask[:, 0].all()), bool(batch.mask[:, -1].all())))
        return batch

    def gathered() -> dict[str, torch.Tensor]:
        documents = DocumentBatches(DOCUMENTS, size)
        found: dict[str, torch.Tensor] = {}
        for names in (MEANS | GRADIENTS | {"counterfactual_effects"}, frozenset({"contrast_differences"})):
            found |= collect.gather(lm_of(model), [matrix], names, documents, lambda _: Svd(u, s, vh))[matrix.key]
        return found

    monkeypatch.setattr(batches, "pad", padded)
    on_the_left = gathered()
    assert set(sides) == {(False, True)}
    sides.clear()
    monkeypatch.setattr(batches, "COUNTS_PADDING", frozenset({"repeated"}))
    on_the_right = gathered()
    assert set(sides) == {(True, False)}
    assert len(on_the_left["contrast_differences"]) == 4
    for name, value in on_the_left.items():
        torch.testing.assert_close(on_the_right[name], value, rtol=1e-5, atol=1e-7)
