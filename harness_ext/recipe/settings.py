"""The keys of a step that hold keys of their own: what it learns from, how it tries out, masks, trains and heals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness_ext.methods.budget import Keep
from leaderboard.readers.plain_yaml import shown

if TYPE_CHECKING:
    from harness_ext.recipe.schema import Step

EVALUATED = "evaluated"
"""Stands, as a calibration task, for every evaluated task that has labelled training documents."""
HEAL = "heal"
"""The method that trains what earlier steps edited, and the key of a recipe that adds such a step."""

# A mixture of 128 experts has some 20,000 matrices.
MOST_ENTRIES = 100_000

# A receipt is JSON, which has no infinities.
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _each_once(tasks: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if not tasks or twice:
        raise ValueError(f"names {shown(repr(twice[0]))} twice: name each once" if twice else "names no task")
    return tasks


Tasks = str | Annotated[tuple[str, ...], AfterValidator(_each_once)]
"""One task or several, each of which gives its share of the documents."""


class Calibration(BaseModel):
    """Where a method's statistics come from: labelled documents of a task, never the documents that are scored.

    task: one task or several, or `evaluated`. split: `test` takes documents out of the scored split, and so out of the
    score of every variant, for tasks that have no other. samples: documents in all, drawn evenly from the tasks by
    `seed`. batch_size: documents in one forward pass.
    shuffled_labels: the answers change places among the documents of a task; a control, what is learned from them is
    not about the questions.
    """

    model_config = STRICT

    task: Tasks = EVALUATED
    split: Literal["train", "validation", "test"] = "train"
    samples: Annotated[int, Field(ge=1)] = 160
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 16
    shuffled_labels: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """The named tasks as a tuple."""
        return (self.task,) if isinstance(self.task, str) else self.task


class SearchSettings(BaseModel):
    """How edits are tried out on the calibration documents. rounds: at most; each renews the gradients. at_once:
    candidates of the first trial of a round, halved while the loss does not fall, and at last tried one by one.
    """

    model_config = STRICT

    rounds: Annotated[int, Field(ge=1)] = 8
    at_once: Annotated[int, Field(ge=1)] = 16


class Masking(BaseModel):
    """How keep-probabilities of units are learned, with forward passes over the calibration documents alone.

    unit_fraction: `floor` of that share of the heads stays, and of the hidden units, one at least of each; which
    layers they are in follows from the probabilities. start: what these start from, a ranking or the seed. steps: of
    the policy gradient, each on one batch of `calibration.batch_size` documents, under as many masks as `draws` says;
    0 keeps the mask that it starts from. held_out: the share of each task's documents that is learned nothing from, and
    measures what was learned. columns: how many of them each matrix keeps, by its name, in place of `unit_fraction`.
    """

    model_config = STRICT

    unit_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8
    start: Literal["wanda-sp", "random"] = "wanda-sp"
    steps: Annotated[int, Field(ge=0)] = 64
    draws: Annotated[int, Field(ge=2)] = 2
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.25
    columns: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MOST_ENTRIES)] | None = (
        None
    )

    def held_out_of(self, documents: int) -> int:
        """How many of so many documents of a task are held out."""
        return int(self.held_out * documents + 1e-9)


class Training(BaseModel):
    """How basis selection trains on the calibration documents; names after arXiv:2405.15877, values ours. One optimiser
    step a batch of `calibration.batch_size` documents.

    keep_ratio: of each matrix's sum of |s|, what its bases have left after pruning. pruning_times: rounds in which that
    falls there. keeping_epochs, pruning_epochs, post_epochs: before pruning, after
    each round, and of the two factors at last. added_rank: new bases a matrix. loss: `text` for all tokens of prompt
    and right answer (language modelling), `answer` for those of the answer.
    """

    model_config = STRICT

    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    pruning_times: Annotated[int, Field(ge=1)] = 4
    keeping_epochs: Annotated[int, Field(ge=0)] = 4
    pruning_epochs: Annotated[int, Field(ge=1)] = 2
    post_epochs: Annotated[int, Field(ge=0)] = 8
    added_rank: Annotated[int, Field(ge=0)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    loss: Literal["text", "answer"] = "text"

    @property
    def epochs(self) -> int:
        """How often every document is seen."""
        return self.keeping_epochs + self.pruning_times * self.pruning_epochs + self.post_epochs


class Healing(BaseModel):
    """How matrices that earlier steps edited are trained on calibration documents. One optimiser step (AdamW) a batch
    of `calibration.batch_size` documents.

    rank: of what is added to a dense matrix, and, with `factors: lora`, to each factor of a matrix of low rank.
    factors: whether such factors are trained as a whole. order: both at once, or the left ones for half of the steps
    and then the right ones. loss: as in `Training`; or `blocks`, one decoder layer after another, for so many steps
    each: how far its outputs are from those of the unedited model's layer.
    """

    model_config = STRICT

    steps: Annotated[int, Field(ge=1)] = 64
    rank: Annotated[int, Field(ge=1)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    factors: Literal["whole", "lora"] = "whole"
    order: Literal["together", "left-then-right"] = "together"
    loss: Literal["text", "answer", "blocks"] = "text"


class Heal(Healing):
    """The key `heal` of a recipe, which stands for a last step of the method `heal`: how matrices are trained, on which
    and how many documents, and the seed of both. task, split, batch_size: as in `Calibration`.
    """

    documents: Annotated[int, Field(ge=1)] = 256
    task: Tasks = EVALUATED
    split: Literal["train", "validation", "test"] = "train"
    seed: int = 0
    batch_size: Annotated[int, Field(ge=1)] = 16

    def step(self, earlier: Sequence[Step]) -> dict[str, Any]:
        """The step that it stands for, as plain data. earlier: the steps of the recipe; where there is one, its
        matrices are named, else all, of which those that were edited are trained.
        """
        chosen: dict[str, Any] = {"matrices": ["all"]}
        if len(earlier) == 1:
            chosen = earlier[0].model_dump(exclude_none=True, include={"matrices", "layers", "per_head"})
        factored = {step.factored for step in earlier} if earlier else set()
        documents = {"task": self.task, "split": self.split, "samples": self.documents, "seed": self.seed}
        return {
            "method": HEAL,
            **chosen,
            "seed": self.seed,
            "factored": next(iter(factored)) if len(factored) == 1 else False,
            "healing": self.model_dump(include=set(Healing.model_fields)),
            "calibration": {**documents, "batch_size": self.batch_size},
        }


NESTED: dict[str, type[BaseModel]] = {
    "keep": Keep,
    "calibration": Calibration,
    "search": SearchSettings,
    "training": Training,
    "healing": Healing,
    "masks": Masking,
}
"""The fields of a step that hold keys of their own."""
