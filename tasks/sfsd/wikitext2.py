"""WikiText-2 perplexity over pieces of 128, 2,048 or 4,096 tokens, as papers on low-rank compression report it.

lm-eval's `wikitext` scores whole pages and counts words; that number and these cannot be compared, nor these with each other. The test split is joined and cut into
pieces of equal length, the rest dropped; of each piece the first token is given and the others are predicted from the piece alone. One choice differs from most papers' code,
which cuts a list of token numbers: lm-eval hands texts to a model, and many a tokenizer divides a text out of the middle otherwise than the whole. So a piece ends where the
tokenizer, given this piece by itself, makes exactly so many tokens of it: never more than fit into a model that reads so many.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.running_text import check_context, tokenizer_of, wikitext2
from harness_ext.lm_eval_adapter.task_data import Row, Source

if TYPE_CHECKING:
    from datasets import DatasetDict

TRIES = 8
"""How often the end of a piece is moved by the tokens that it has too many; one or two times are usual."""
TRAINING_TOKENS = 256 * 2048
"""As many of the training split's tokens as recipes learn from at most, from its start; cutting all of it would take most of a minute."""
LETTERS_A_TOKEN = 6
"""More than tokenizers have on average in English."""


class Tokens(NamedTuple):
    """A text's tokens: their numbers in the vocabulary, and where in the text each ends."""

    numbers: list[int]
    ends: list[int]


class Piece(NamedTuple):
    """A part of the whole text, where in that it ends, and the tokens that it has by itself."""

    text: str
    end: int
    tokens: Tokens


def pieces(length: int, **settings: Any) -> DatasetDict:
    """The documents of one length in tokens of the evaluated model's tokenizer."""
    source = Source(f"wikitext2_{length}", "wikitext-2-raw", settings)
    tokenizer = _tokenizer(source, settings)
    check_context(source, settings, length, "wikitext2_128, or lm-eval's `wikitext`")
    found = {
        "test": list(cut(wikitext2(source, "test"), tokenizer, length)),
        "train": list(cut(wikitext2(source, "train")[: TRAINING_TOKENS * LETTERS_A_TOKEN], tokenizer, length, TRAINING_TOKENS // length)),
    }
    for split, documents in found.items():
        if not documents:
            raise UserError(f"task {source.task}: the {split} split is shorter than one piece of {length} tokens; provide the official wiki.{split}.raw, whole")
    return source.splits(**found)


def cut(text: str, tokenizer: Any, length: int, most: int | None = None) -> Iterator[Row]:
    """Pieces (the first `most`, or all) that are `length` tokens each by themselves, in order: `context`, the first token (more where it is blank), `text`, the others, and `tokens`, how many others."""
    return islice(filter(None, (_row(piece, tokenizer) for piece in _pieces(text, tokenizer, length))), most)


def _pieces(text: str, tokenizer: Any, length: int) -> Iterator[Piece]:
    ends = sorted(set(_tokens(text, tokenizer).ends))
    # A tokenizer that puts a space before every text would make two of one that stands there.
    adds_space = _tokens("a b", tokenizer).numbers == _tokens("a", tokenizer).numbers + _tokens("b", tokenizer).numbers
    start = 0
    while (first := bisect_right(ends, start)) + length <= len(ends):
        start += adds_space and text[start] == " "
        piece = _piece(text, tokenizer, length, start, ends)
        if piece:
            yield piece
        start = piece.end if piece else ends[first]


def _piece(text: str, tokenizer: Any, length: int, start: int, ends: Sequence[int]) -> Piece | None:
    """The piece of `length` tokens that begins at `start`, and ends where one of the whole text's tokens does (`ends`); None where no such piece is found."""
    place = bisect_right(ends, start) + length - 1
    for _ in range(TRIES):
        if not 0 <= place < len(ends) or ends[place] <= start:
            return None
        part = text[start : ends[place]]
        tokens = _tokens(part, tokenizer)
        if len(tokens.numbers) == length:
            return Piece(part, ends[place], tokens)
        place -= len(tokens.numbers) - length
    return None


def _row(piece: Piece, tokenizer: Any) -> Row | None:
    """A piece divided after its first token, or after the first that lm-eval leaves in the context (it moves blanks at the end of one into the text); None where there is none."""
    numbers, ends = piece.tokens
    for given, end in enumerate(ends[:-1], 1):
        context = piece.text[:end]
        if context.strip() and context == context.rstrip() and _tokens(context, tokenizer).numbers == numbers[:given]:
            return {"context": context, "text": piece.text[end:], "tokens": len(numbers) - given}
    return None


def _tokens(text: str, tokenizer: Any) -> Tokens:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return Tokens(found["input_ids"], [end for _, end in found["offset_mapping"]])


def _tokenizer(source: Source, settings: Mapping[str, Any]) -> Any:
    tokenizer = tokenizer_of(source, settings)
    if not tokenizer.is_fast:
        raise UserError(f"task {source.task}: the tokenizer of the model does not say where its tokens lie in the text (it is not a fast one); use lm-eval's `wikitext` instead")
    return tokenizer


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Score one piece: the log-likelihood of what is predicted, over its tokens (`token_perplexity`) and over its bytes (`bits_per_byte`, for models with different tokenizers)."""
    ((likelihood, _),) = results
    return {"token_perplexity": (likelihood, doc["tokens"]), "bits_per_byte": (likelihood, len(doc["text"].encode()))}
