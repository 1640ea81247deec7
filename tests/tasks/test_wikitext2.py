"""WikiText-2 in pieces of equal length: the cuts, the counts, and perplexity against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.task_data import Source
from leaderboard.judge import Scored, judge

from .conftest import FIXTURES, load, module

WIKITEXT = module("sfsd/wikitext2.py")


@pytest.fixture(scope="module")
def tokenizer():
    """Pieces of text by bytes, merged in pairs: every cut falls between tokens of several letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator([text()], trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def text() -> str:
    return WIKITEXT.joined(Source("wikitext2_128", "wikitext-2-raw", {"data_dir": str(FIXTURES)}))


def test_lines_are_joined_as_the_usual_perplexity_joins_the_hubs_rows(monkeypatch):
    """The hub has one row a line: empty where the line is blank, else the line with its end."""
    import datasets

    lines = (FIXTURES / "wikitext-2-raw" / "wiki.test.raw").read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [{"text": line if line.strip() else ""} for line in lines]
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: datasets.Dataset.from_list(rows))
    assert WIKITEXT.joined(Source("wikitext2_128", "wikitext-2-raw", {})) == text() and " = Oster = \n" in text()


@pytest.mark.parametrize("length", [16, 128])
def test_pieces_are_the_text_in_order_and_of_equal_length(tokenizer, length):
    pieces = list(WIKITEXT.cut(text(), tokenizer, length))
    total = len(tokenizer(text(), add_special_tokens=False)["input_ids"])
    assert len(pieces) == total // length > 1
    assert text().startswith("".join(piece["text"] for piece in pieces))
    for piece in pieces:
        assert piece["tokens"] == len(tokenizer(piece["text"], add_special_tokens=False)["input_ids"])
        # The text begins and ends where the whole text's tokens do, so a tokenizer rarely sees the piece otherwise.
        assert abs(piece["tokens"] - length) <= 2


def test_perplexity_by_hand():
    scores = [WIKITEXT.process_results({"text": "abcd", "tokens": 2}, [(-3.0, False)]), WIKITEXT.process_results({"text": "ef", "tokens": 2}, [(-1.0, False)])]
    assert scores[0] == {"token_perplexity": (-3.0, 2), "bits_per_byte": (-3.0, 4)}
    assert weighted_perplexity([score["token_perplexity"] for score in scores]) == pytest.approx(math.e)
    assert bits_per_byte([score["bits_per_byte"] for score in scores]) == pytest.approx(4 / 6 / math.log(2))


def test_the_leaderboard_pairs_token_perplexity():
    """Two runs whose log-likelihoods differ by a tenth of a nat a token: the ratio of perplexities is e^0.1."""
    draw = np.random.default_rng(0)
    before, tokens = -128 * draw.uniform(2, 3, 40), np.full(40, 128.0)
    after = before - 12.8 + draw.normal(0, 0.5, 40)
    first, second = (Scored(math.exp(-values.sum() / tokens.sum()), values, tokens) for values in (before, after))
    effect = judge("token_perplexity", first, second, higher_is_better=False)
    assert effect.p_value < 1e-3 and effect.low > 0 and effect.improvement < 0
    assert first.score * math.expm1(0.09) < effect.delta < first.score * math.expm1(0.11)


def test_every_token_of_a_piece_is_scored_once_from_the_start_token():
    """A model that gives every token of the embedded model's vocabulary the same probability has a perplexity of its size."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(str(demo_path()), device="cpu", batch_size=4)
    lm._model_call = lambda inps, **kwargs: torch.zeros(*inps.shape, lm.vocab_size)
    task = load("wikitext2_128", data_dir=str(FIXTURES), tokenizer=str(demo_path()))["wikitext2_128"]
    lm._max_length = 128
    scores = lm_eval.evaluate(lm, {"tasks": {"wikitext2_128": task}}, bootstrap_iters=0)["results"]["wikitext2_128"]
    assert scores["token_perplexity,none"] == pytest.approx(lm.vocab_size, rel=1e-5)


@pytest.mark.parametrize(("setting", "limit"), [({}, None), ({"max_length": 100}, 100)])
def test_a_model_that_cannot_read_a_piece_at_once(tmp_path, setting, limit):
    from transformers import AutoTokenizer, LlamaConfig

    AutoTokenizer.from_pretrained(demo_path()).save_pretrained(tmp_path)
    LlamaConfig(max_position_embeddings=128).save_pretrained(tmp_path)
    settings = {"data_dir": str(FIXTURES), "pretrained": str(tmp_path), **setting}
    if limit is None:
        assert len(load("wikitext2_128", **settings)["wikitext2_128"].test_docs()) > 0
        return
    with pytest.raises(UserError, match=f"task wikitext2_128: the model reads at most {limit} tokens at once, and the pieces have 128"):
        load("wikitext2_128", **settings)


def test_no_tokenizer_named():
    with pytest.raises(UserError, match="task wikitext2_128: .*no tokenizer is named: give the model by --model_args"):
        load("wikitext2_128", data_dir=str(FIXTURES))


def test_no_such_tokenizer(tmp_path):
    with pytest.raises(UserError, match="task wikitext2_128: the tokenizer of .* cannot be loaded"):
        load("wikitext2_128", data_dir=str(FIXTURES), pretrained=str(tmp_path))


def test_a_text_shorter_than_a_piece():
    with pytest.raises(UserError, match="task wikitext2_2048: the test split is shorter than one piece of 2048 tokens"):
        load("wikitext2_2048", data_dir=str(FIXTURES), tokenizer=str(demo_path()))
