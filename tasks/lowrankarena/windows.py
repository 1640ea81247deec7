"""LowRankArena's perplexities: windows of 2,048 token numbers, one after another, each by itself, without special tokens.

WikiText-2: all rows of the test split joined by empty lines and tokenised once. C4: the validation split from its first document on, blank documents left out, each tokenised by itself, the
tokens of an empty line between them, cut at 262,144 tokens. The last short window is dropped; of each window 2,047 tokens are predicted from those before them.

SVD-LLM's C4 is other windows of the same length: the first 2,000 documents of that split, joined by empty lines and tokenised once, with a BOS where the tokenizer puts one.

A window is a list of token numbers, and is asked as that wherever the backend can (`harness_ext.task_requests.TokenWindow`); others are asked its text, which they may divide otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.running_text import check_context, tokenizer_of, wikitext2
from harness_ext.lm_eval_adapter.task_data import Row, Source

if TYPE_CHECKING:
    from datasets import DatasetDict

LENGTH = 2048
C4_TOKENS = 262_144
C4_DOCUMENTS = 2000
TRAINING_WINDOWS = 256
C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
"""Of `allenai/c4` on the Hugging Face hub, as the protocol pins it."""
LETTERS_A_TOKEN = 6
"""More than tokenizers have on average in English."""


def wikitext2_windows(length: int = LENGTH, **settings: Any) -> DatasetDict:
    """The windows of WikiText-2's test split, and the first 256 of its training split to learn from."""
    source = Source("wikitext2_arena", "wikitext-2-raw", settings)
    tokenizer = _tokenizer(source, settings, length)
    most = TRAINING_WINDOWS * length
    test = numbers_of(tokenizer, wikitext2(source, "test"))
    train = numbers_of(tokenizer, wikitext2(source, "train")[: most * LETTERS_A_TOKEN])[:most]
    return source.splits(test=list(windows(tokenizer, test, length)), train=list(windows(tokenizer, train, length)))


def c4_windows(length: int = LENGTH, tokens: int = C4_TOKENS, **settings: Any) -> DatasetDict:
    """The windows of the first 262,144 tokens of C4's validation split."""
    source = Source("c4_stream", "c4", settings)
    tokenizer = _tokenizer(source, settings, length)
    numbers = list(islice(c4_numbers(tokenizer, c4_texts(source)), tokens))
    found = _of_c4(source, tokenizer, numbers, length)
    _check_whole(source, len(numbers), tokens, "tokens")
    return source.splits(test=found)


def c4_first_windows(length: int = LENGTH, documents: int = C4_DOCUMENTS, **settings: Any) -> DatasetDict:
    """The windows of the first 2,000 documents of C4's validation split, as one text."""
    source = Source("c4_first_2000", "c4", settings)
    tokenizer = _tokenizer(source, settings, length)
    texts = list(islice(c4_texts(source), documents))
    found = _of_c4(source, tokenizer, tokenizer("\n\n".join(texts), verbose=False)["input_ids"], length)
    _check_whole(source, len(texts), documents, "documents")
    return source.splits(test=found)


def _of_c4(source: Source, tokenizer: Any, numbers: Sequence[int], length: int) -> list[Row]:
    found = list(windows(tokenizer, numbers, length))
    if not found:
        raise UserError(f"task {source.task}: the texts are shorter than one window of {length} tokens; provide the official file, whole")
    return found


def _check_whole(source: Source, has: int, wanted: int, what: str) -> None:
    """Refuse texts of a download that was cut: their perplexity would be that of fewer windows than the protocol's."""
    if has < wanted:
        raise UserError(
            f"task {source.task}: the texts have {has} {what}, and {wanted} are scored; provide the official file,"
            " whole"
        )


def c4_texts(source: Source) -> Iterator[str]:
    """The documents of C4's validation split in their order, as far as they are asked for."""
    if source.local is None:
        yield from (row["text"] for row in source.stream("allenai/c4", "en", "validation", C4_REVISION))
        return
    path = source.file(*(f"c4-validation.00000-of-{parts:05}.json{ending}" for parts in (8, 512) for ending in (".gz", "")))
    yield from (str(row["text"]) for row in source.lines(path, ("text",)))


def c4_numbers(tokenizer: Any, texts: Iterable[str]) -> Iterator[int]:
    """The token numbers of documents, each tokenised by itself, with those of an empty line between them."""
    between = numbers_of(tokenizer, "\n\n")
    for place, text in enumerate(text for text in texts if text.strip()):
        if place:
            yield from between
        yield from numbers_of(tokenizer, text)


def numbers_of(tokenizer: Any, text: str) -> list[int]:
    """The token numbers of a text, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def windows(tokenizer: Any, numbers: Sequence[int], length: int) -> Iterator[Row]:
    """Windows of token numbers in order, the last short one left out: `context`, the text of the first token, `text`, that of the others, `window`, the numbers, and `tokens`, how many are predicted."""
    for start in range(0, len(numbers) - length + 1, length):
        own = list(numbers[start : start + length])
        # a context without a letter would be taken for none
        yield {"context": tokenizer.decode(own[:1]) or "\ufffd", "text": tokenizer.decode(own[1:]), "window": own, "tokens": length - 1}


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Score one window: the log-likelihood of what is predicted, over its tokens (`token_perplexity`) and over its bytes (`bits_per_byte`)."""
    ((likelihood, _),) = results
    return {"token_perplexity": (likelihood, doc["tokens"]), "bits_per_byte": (likelihood, len(doc["text"].encode()))}


def _tokenizer(source: Source, settings: Mapping[str, Any], length: int) -> Any:
    check_context(source, settings, length, "lm-eval's `wikitext`")
    return tokenizer_of(source, settings)
