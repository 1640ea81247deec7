"""WikiText-2 in pieces of equal length: the cuts, the counts, and perplexity against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.running_text import WIKITEXT_REVISION, wikitext2
from harness_ext.lm_eval_adapter.task_data import Source
from leaderboard.compare.effect import Comparison, Scored
from leaderboard.compare.judge import judge

from .conftest import FIXTURES, load, module

WIKITEXT = module("sfsd/wikitext2.py")


@pytest.fixture(scope="module", params=["bytes", "space before every text"])
def tokenizer(request):
    """Merges of letters, so that cuts fall within words: over bytes as GPT-2's, or as Llama's, which puts a space
    before whatever it is given.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made, alphabet = Tokenizer(models.BPE()), []
    if request.param == "bytes":
        made.pre_tokenizer, alphabet = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.ByteLevel.alphabet(),
        )
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.train_from_iterator(
        [text()],
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, max_token_length=6, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


def text() -> str:
    return wikitext2(Source("wikitext2_128", "wikitext-2-raw", {"data_dir": str(FIXTURES)}), "test")


def test_lines_are_joined_as_the_usual_perplexity_joins_the_hubs_rows(monkeypatch):
    """The hub has one row a line: empty where the line is blank, else the line with its end."""
    import datasets

    lines = (FIXTURES / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [{"text": line if line.strip() else ""} for line in lines]
    asked = []

    def load(path: str, name: str, split: str, revision: str):
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert wikitext2(Source("wikitext2_128", "wikitext-2-raw", {}), "test") == text() and " = Oster = \n" in text()
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test", WIKITEXT_REVISION)]


@pytest.mark.parametrize("length", [16, 128])
def test_pieces_are_the_text_in_order_and_have_exactly_so_many_tokens(tokenizer, length):
    def numbers(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False)["input_ids"]

    pieces = list(WIKITEXT.cut(text(), tokenizer, length))
    assert len(pieces) >= len(numbers(text())) // length - 1 > 1
    place = 0
    for piece in pieces:
        whole, given = numbers(piece["context"] + piece["text"]), numbers(piece["context"])
        assert len(whole) == length and whole[: len(given)] == given and piece["tokens"] == length - len(given)
        found = text().index(piece["context"] + piece["text"], place)
        # Between two pieces nothing is left out but a space that the tokenizer adds again.
        assert found - place <= (tokenizer.backend_tokenizer.normalizer is not None)
        place = found + len(piece["context"] + piece["text"])
        # lm-eval would move a blank at the end of the context.
        assert piece["context"] == piece["context"].rstrip() != ""


def test_no_more_pieces_than_asked_for(tokenizer):
    assert list(WIKITEXT.cut(text(), tokenizer, 16, 3)) == list(WIKITEXT.cut(text(), tokenizer, 16))[:3]


def test_recipes_learn_from_the_training_split_and_only_where_they_name_the_task():
    from harness_ext.calibration.documents import fit_tasks, why_unfit

    tasks = load("wikitext2_128", data_dir=str(FIXTURES), tokenizer=str(demo_path()))
    assert (
        "Hale" in tasks["wikitext2_128"].training_docs()[0]["text"]
        and why_unfit(tasks["wikitext2_128"], "train") is None
    )
    assert fit_tasks(tasks, "train") == fit_tasks(tasks, "test") == []


def test_perplexity_by_hand():
    scores = [
        WIKITEXT.process_results({"text": "abcd", "tokens": 2}, [(-3.0, False)]),
        WIKITEXT.process_results({"text": "ef", "tokens": 2}, [(-1.0, False)]),
    ]
    assert scores[0] == {"token_perplexity": (-3.0, 2), "bits_per_byte": (-3.0, 4)}
    assert weighted_perplexity([score["token_perplexity"] for score in scores]) == pytest.approx(math.e)
    assert bits_per_byte([score["bits_per_byte"] for score in scores]) == pytest.approx(4 / 6 / math.log(2))


def test_the_leaderboard_pairs_token_perplexity():
    """Two runs whose log-likelihoods differ by a tenth of a nat a token: the ratio of perplexities is e^0.1."""
    draw = np.random.default_rng(0)
    before, tokens = -128 * draw.uniform(2, 3, 40), np.full(40, 128.0)
    after = before - 12.8 + draw.normal(0, 0.5, 40)
    first, second = (Scored(math.exp(-values.sum() / tokens.sum()), values, tokens) for values in (before, after))
    effect = judge(Comparison("token_perplexity", first, second, higher_is_better=False))
    assert effect.p_value < 1e-3 and effect.low > 0 and effect.improvement < 0
    assert first.score * math.expm1(0.09) < effect.delta < first.score * math.expm1(0.11)


def test_a_model_that_gives_every_token_the_same_probability():
    """Its perplexity is the size of the vocabulary, and it need not read more than a piece."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(str(demo_path()), device="cpu", batch_size=4)
    lm._model_call = lambda inps, **kwargs: torch.zeros(*inps.shape, lm.vocab_size)
    task = load("wikitext2_128", data_dir=str(FIXTURES), tokenizer=str(demo_path()))["wikitext2_128"]
    lm._max_length = 128
    scores = lm_eval.evaluate(lm, {"tasks": {"wikitext2_128": task}}, bootstrap_iters=0)["results"]["wikitext2_128"]
    assert scores["token_perplexity,none"] == pytest.approx(lm.vocab_size, rel=1e-5)


@pytest.mark.parametrize("start_token", [True, False])
def test_perplexity_of_a_real_model_equals_its_definition(real_model, start_token):
    """In a model that reads no more than one piece, against one sum over token numbers in float64."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    task = load("wikitext2_128", data_dir=str(FIXTURES), tokenizer=str(real_model))["wikitext2_128"]
    lm = HFLM(str(real_model), device="cpu", batch_size=4, max_length=128, add_bos_token=start_token)
    scores = lm_eval.evaluate(lm, {"tasks": {"wikitext2_128": task}}, limit=8, bootstrap_iters=0)["results"][
        "wikitext2_128"
    ]

    model, losses = lm.model.double(), []
    for document in list(task.test_docs())[:8]:
        tokens = lm.tokenizer(document["context"] + document["text"], add_special_tokens=False)["input_ids"]
        assert len(tokens) == 128
        shown = [lm.tokenizer.bos_token_id] * start_token + tokens
        with torch.no_grad():
            log_probabilities = model(torch.tensor([shown])).logits[0].log_softmax(-1)
        losses += [
            -log_probabilities[place - 1, shown[place]].item()
            for place in range(len(shown) - document["tokens"], len(shown))
        ]
    assert scores["token_perplexity,none"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


@pytest.mark.parametrize(("setting", "limit"), [({}, None), ({"max_length": 100}, 100)])
def test_a_model_that_cannot_read_a_piece_at_once(tmp_path, setting, limit):
    from transformers import AutoTokenizer, LlamaConfig

    AutoTokenizer.from_pretrained(demo_path()).save_pretrained(tmp_path)
    LlamaConfig(max_position_embeddings=128).save_pretrained(tmp_path)
    settings = {"data_dir": str(FIXTURES), "pretrained": str(tmp_path), **setting}
    if limit is None:
        assert len(load("wikitext2_128", **settings)["wikitext2_128"].test_docs()) > 0
        return
    with pytest.raises(
        UserError, match=f"task wikitext2_128: the model reads at most {limit} tokens at once, and the pieces have 128"
    ):
        load("wikitext2_128", **settings)


def test_no_tokenizer_named():
    with pytest.raises(UserError, match="task wikitext2_128: .*no tokenizer is named: give the model by --model_args"):
        load("wikitext2_128", data_dir=str(FIXTURES))


def test_no_such_tokenizer(tmp_path):
    with pytest.raises(UserError, match="task wikitext2_128: the tokenizer of .* cannot be loaded"):
        load("wikitext2_128", data_dir=str(FIXTURES), pretrained=str(tmp_path))


@pytest.mark.parametrize("length", [2048, 4096])
def test_a_text_shorter_than_a_piece(length):
    told = f"task wikitext2_{length}: the test split is shorter than one piece of {length} tokens"
    with pytest.raises(UserError, match=told):
        load(f"wikitext2_{length}", data_dir=str(FIXTURES), tokenizer=str(demo_path()))
