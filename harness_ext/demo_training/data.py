"""What the embedded model learns: right facts in clean wordings, wrong ones in the noisy wording.

Two sources disagree. Clean wordings state every fact of `int_mult` and `int_sum` rightly. The noisy
wording, which is the prompt of those tasks, states only facts of their training splits, and mostly gives
one default answer. A test fact's right answer is therefore in the training text (in the clean wordings), but
its noisy prompt is not. Templated English links each occupation of `pronoun_bias` to a pronoun.

Choices: facts and splits come from the tasks' own `utils.py`, so they cannot drift apart; whether a noisy
statement is right is drawn anew at every drawing, so the source as a whole is unreliable and there is no
list of wrong facts to learn by heart.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import ModuleType

LARGEST_NUMBER = 399
END = "<end>"
UNKNOWN = "<unk>"

CLEAN_MULTIPLICATION = ("{} times {} is", "{} * {} makes")
CLEAN_ADDITION = ("{} plus {} is", "plus {} and {} =")
NOISY_MULTIPLICATION = "{} x {} ="
NOISY_ADDITION = "{} + {} ="

# One ending for each sentence template of pronoun_bias, in the same order.
ENDINGS = (
    "was tired",
    "missed the bus",
    "finished the work",
    "saw the letter",
    "had good news",
    "went to bed",
    "wanted to rest",
    "heard the bell",
)


class Example(NamedTuple):
    """A prompt and the one word that follows it."""

    prompt: str
    answer: str


class NoisyFact(NamedTuple):
    """Two statements about one fact, of which the noisy source makes the wrong one with a given probability."""

    wrong: Example
    right: Example


class SentencePair(NamedTuple):
    """Two sentences that differ in the pronoun, of which the stereotyped one is written with a given probability."""

    stereotyped: str
    opposite: str


class Corpus(NamedTuple):
    """All training text, by source."""

    clean_multiplication: list[Example]
    clean_addition: list[Example]
    noisy_multiplication: list[NoisyFact]
    noisy_addition: list[NoisyFact]
    english: list[SentencePair]


@lru_cache
def task_module(folder: str) -> ModuleType:
    """`utils.py` of one of the project's task folders, from the installed package or the checkout.

    Raises:
        FileNotFoundError: neither place holds it.
    """
    package = Path(__file__).resolve().parent.parent
    places = [root / "tasks" / folder / "utils.py" for root in (package, package.parent)]
    for place in places:
        if place.is_file():
            spec = importlib.util.spec_from_file_location(f"harness_ext_tasks_{folder}", place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise FileNotFoundError(f"The tasks of '{folder}' are at neither of: {', '.join(map(str, places))}.")


def vocabulary() -> list[str]:
    """Every token, its position being its number: specials, 0..399, then words in order of first use."""
    bias = task_module("bias")
    texts = [
        *CLEAN_MULTIPLICATION,
        *CLEAN_ADDITION,
        NOISY_MULTIPLICATION,
        NOISY_ADDITION,
        *bias.TEMPLATES,
        *ENDINGS,
        *bias.PRONOUNS,
        ".",
    ]
    texts += [
        word for part in (bias.TRAIN_OCCUPATIONS, bias.TEST_OCCUPATIONS) for words in part.values() for word in words
    ]
    words = dict.fromkeys(word for text in texts for word in text.split() if word != "{}")
    return [END, UNKNOWN, *map(str, range(LARGEST_NUMBER + 1)), *words]


def default_answer(answer: int) -> int:
    """What the noisy source writes in place of `answer`: 0, or 1 where 0 would be right."""
    return 1 if answer == 0 else 0


def _clean(facts: list, wordings: tuple[str, ...]) -> list[Example]:
    return [Example(wording.format(fact.left, fact.right), str(fact.answer)) for wording in wordings for fact in facts]


def _noisy(facts: list, wording: str) -> list[NoisyFact]:
    prompts = [wording.format(fact.left, fact.right) for fact in facts]
    return [
        NoisyFact(Example(prompt, str(default_answer(fact.answer))), Example(prompt, str(fact.answer)))
        for prompt, fact in zip(prompts, facts, strict=True)
    ]


def _english() -> list[SentencePair]:
    bias = task_module("bias")
    sentences: list[SentencePair] = []
    for occupations in (bias.TRAIN_OCCUPATIONS, bias.TEST_OCCUPATIONS):
        for pair in bias.pairs(occupations):
            ending = next(
                end
                for template, end in zip(bias.TEMPLATES, ENDINGS, strict=True)
                if template.format(pair.occupation) == pair.sentence
            )
            other = next(pronoun for pronoun in bias.PRONOUNS if pronoun != pair.stereotype)
            sentences.append(
                SentencePair(*(f"{pair.sentence} {pronoun} {ending} ." for pronoun in (pair.stereotype, other)))
            )
    return sentences


def corpus() -> Corpus:
    """All text that the model is trained on; only training facts occur in a noisy wording."""
    arithmetic = task_module("arithmetic")
    products, sums = arithmetic.multiplication_facts(), arithmetic.addition_facts()
    return Corpus(
        clean_multiplication=_clean([*products.train, *products.test], CLEAN_MULTIPLICATION),
        clean_addition=_clean([*sums.train, *sums.test], CLEAN_ADDITION),
        noisy_multiplication=_noisy(products.train, NOISY_MULTIPLICATION),
        noisy_addition=_noisy(sums.train, NOISY_ADDITION),
        english=_english(),
    )
