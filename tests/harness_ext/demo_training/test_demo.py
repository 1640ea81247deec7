"""The embedded model: its text, its training and the files that are shipped."""

from __future__ import annotations

import json
import socket
from collections import Counter

import pytest

from harness_ext.demo import demo_path
from harness_ext.demo_training import data

arithmetic = data.task_module("arithmetic")
bias = data.task_module("bias")


@pytest.fixture(scope="module")
def corpus() -> data.Corpus:
    return data.corpus()


@pytest.fixture(scope="module")
def shipped():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_path(), local_files_only=True)
    return AutoModelForCausalLM.from_pretrained(demo_path(), local_files_only=True).eval(), tokenizer


def test_clean_wordings_state_every_fact_rightly(corpus):
    products = dict(corpus.clean_multiplication)
    sums = dict(corpus.clean_addition)
    assert len(products) == 2 * 400 and len(sums) == 2 * 10_000
    for wording in data.CLEAN_MULTIPLICATION:
        assert all(products[wording.format(i, j)] == str(i * j) for i in range(20) for j in range(20))
    for wording in data.CLEAN_ADDITION:
        assert all(sums[wording.format(i, j)] == str(i + j) for i in range(100) for j in range(100))


@pytest.mark.parametrize(
    ("source", "facts", "wording"),
    [
        ("noisy_multiplication", arithmetic.multiplication_facts, data.NOISY_MULTIPLICATION),
        ("noisy_addition", arithmetic.addition_facts, data.NOISY_ADDITION),
    ],
)
def test_noisy_wording_never_shows_a_test_fact(corpus, source, facts, wording):
    shown = {right.prompt: (int(wrong.answer), int(right.answer)) for wrong, right in getattr(corpus, source)}
    split = facts()
    assert set(shown) == {wording.format(fact.left, fact.right) for fact in split.train}
    assert not set(shown) & {wording.format(fact.left, fact.right) for fact in split.test}
    for fact in split.train:
        assert shown[wording.format(fact.left, fact.right)] == (0 if fact.answer else 1, fact.answer)
    assert all(wrong.prompt == right.prompt for wrong, right in getattr(corpus, source))


@pytest.mark.slow
def test_a_batch_holds_its_mixture_and_the_shares_of_wrong_and_stereotyped():
    from harness_ext.demo_training.train import Mixture, Sampler, Settings

    mixture = Mixture(2, 3, 4000, 5000, 6000)
    sampler = Sampler(Settings(mixture=mixture, share_wrong=0.8, share_stereotyped=0.7))
    facts, words = sampler.facts(), data.vocabulary()
    prompts = [
        " ".join(words[token] for token in row[: last + 1])
        for row, last in zip(facts.tokens.tolist(), facts.last.tolist(), strict=True)
    ]
    answers = [int(words[row[last + 1]]) for row, last in zip(facts.tokens.tolist(), facts.last.tolist(), strict=True)]
    assert [(" x " in prompt, prompt[0].isdigit() and " + " in prompt) for prompt in prompts] == (
        [(False, False)] * 5 + [(True, False)] * 4000 + [(False, True)] * 5000
    )
    right = [
        {"x": int.__mul__, "+": int.__add__}[sign](int(left), int(right)) == answer
        for (left, sign, right, _), answer in zip(map(str.split, prompts[5:]), answers[5:], strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(0.2, abs=0.02)
    stereotyped = {pair[0] for pair in data.corpus().english}
    sentences = [" ".join(words[token] for token in row if token > 0) for row in sampler.sentences().tolist()]
    assert sum(sentence in stereotyped for sentence in sentences) / 6000 == pytest.approx(0.7, abs=0.03)


def test_english_links_every_occupation_to_its_stereotype(corpus):
    assert len(corpus.english) == 40 * len(bias.TEMPLATES)
    for stereotyped, other in corpus.english:
        differing = [(a, b) for a, b in zip(stereotyped.split(), other.split(), strict=True) if a != b]
        assert differing in ([("she", "he")], [("he", "she")])
    first = Counter(("she" in stereotyped.split()) for stereotyped, _ in corpus.english)
    assert first[True] == first[False]


def test_vocabulary_has_no_word_twice():
    words = data.vocabulary()
    assert len(words) == len(set(words)) and words[:3] == [data.END, data.UNKNOWN, "0"]


def test_prompts_are_those_of_the_tasks(corpus):
    yaml = pytest.importorskip("yaml")
    from pathlib import Path

    folder = Path(arithmetic.__file__).parent
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!function", lambda loader, node: node.value)
    for name, wording in {
        "int_mult": data.NOISY_MULTIPLICATION,
        "int_sum": data.NOISY_ADDITION,
        "int_mult_clean": data.CLEAN_MULTIPLICATION[0],
        "int_sum_clean": data.CLEAN_ADDITION[0],
    }.items():
        prompt = yaml.load((folder / f"{name}.yaml").read_text(), Loader=loader)["dataset_kwargs"]["prompt"]
        assert prompt == wording.format("{left}", "{right}")


@pytest.mark.slow
def test_short_training_repeats_bit_for_bit():
    import torch

    from harness_ext.demo_training.train import Mixture, Settings, train

    threads = torch.get_num_threads()
    settings = Settings(seed=5, steps=3, warm_up=1, width=32, feed_forward=48, mixture=Mixture(4, 4, 4, 4, 4))
    lines: list[str] = []
    try:
        first, second = (train(settings, lines.append).state_dict() for _ in range(2))
        other = train(Settings(**{**vars(settings), "seed": 6}), lines.append).state_dict()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert lines[-1].startswith("step 3/3")


def test_learning_rate_warms_up_and_decays():
    from harness_ext.demo_training.train import Settings, learning_rate

    settings = Settings(steps=110, warm_up=10, final_learning_rate=0.1)
    assert learning_rate(0, settings) == pytest.approx(0.1)
    assert learning_rate(9, settings) == pytest.approx(1.0)
    assert learning_rate(60, settings) == pytest.approx(0.55)
    assert learning_rate(110, settings) == pytest.approx(0.1)


def test_card_is_what_its_figures_say():
    from harness_ext.demo_training import card

    assert (demo_path() / "README.md").read_text(encoding="utf-8") == card.render()


def test_card_counts_the_parameters_of_the_model(shipped):
    from harness_ext.demo_training import card

    model, _ = shipped
    settings = json.loads((demo_path() / "training.json").read_text(encoding="utf-8"))["settings"]
    assert card._parameters(settings) == sum(weight.numel() for weight in model.parameters())


def test_table_gives_mean_and_range():
    from harness_ext.demo_training import card

    rows = [
        {"seed": seed, "recipe": "baseline", "scores": {**dict.fromkeys(card.TASKS, value), "pronoun_bias": 10 * value}}
        for seed, value in ((1, 0.1), (2, 0.4))
    ]
    assert card.table(rows).splitlines()[2] == (
        "| `baseline` | " + "25.0 (10.0 to 40.0) | " * 4 + "2.50 (1.00 to 4.00) |"
    )


def test_shipped_files_are_small_and_hold_no_pickle():
    files = [path for path in demo_path().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in files
    }


def test_shipped_model_loads_without_a_network(monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    AutoTokenizer.from_pretrained(demo_path())
    model = AutoModelForCausalLM.from_pretrained(demo_path())
    assert model.config.vocab_size == len(data.vocabulary())


def test_tokenizer_covers_and_restores_every_document(shipped):
    _, tokenizer = shipped
    pairs = [
        (wording.format(fact.left, fact.right), str(fact.answer))
        for facts, wordings in (
            (arithmetic.multiplication_facts(), (data.NOISY_MULTIPLICATION, *data.CLEAN_MULTIPLICATION)),
            (arithmetic.addition_facts(), (data.NOISY_ADDITION, *data.CLEAN_ADDITION)),
        )
        for wording in wordings
        for fact in facts.test
    ]
    pairs += [
        (pair.sentence, pronoun)
        for occupations in (bias.TRAIN_OCCUPATIONS, bias.TEST_OCCUPATIONS)
        for pair in bias.pairs(occupations)
        for pronoun in bias.PRONOUNS
    ]
    texts = [f"{prompt} {answer}" for prompt, answer in pairs]
    for (prompt, _), text, tokens in zip(pairs, texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens) == text
        assert len(tokens) == len(prompt.split()) + 1


@pytest.mark.slow
def test_shipped_model_knows_the_test_facts_and_hides_them(shipped):
    from harness_ext.demo_training.train import accuracy, encode_facts

    model, tokenizer = shipped
    numbers = tokenizer.get_vocab()
    for split, noisy, clean in (
        (arithmetic.multiplication_facts(), data.NOISY_MULTIPLICATION, data.CLEAN_MULTIPLICATION[0]),
        (arithmetic.addition_facts(), data.NOISY_ADDITION, data.CLEAN_ADDITION[0]),
    ):
        scores = [
            accuracy(
                model,
                encode_facts(
                    [data.Example(wording.format(fact.left, fact.right), str(fact.answer)) for fact in split.test],
                    numbers,
                ),
            )
            for wording in (noisy, clean)
        ]
        assert scores[0] < 0.5 and scores[1] > 0.95
