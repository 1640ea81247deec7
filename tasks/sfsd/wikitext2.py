"""WikiText-2 perplexity over pieces of 128 or 2,048 tokens, as papers on low-rank compression report it.

lm-eval's `wikitext` scores whole pages and counts words; that number and these cannot be compared, nor these two with each other. The test split is joined and cut into
pieces of equal length, the rest dropped; of each piece the first token is given and the others are predicted from the piece alone. One choice differs from most papers' code,
which cuts a list of token numbers: lm-eval hands texts to a model, and many a tokenizer divides a text out of the middle otherwise than the whole. So a piece ends where the
tokenizer, given this piece by itself, makes exactly so many tokens of it: never more than fit into a model that reads so many.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.errors import UserError
from harness_ext.task_data import Row, Source

if TYPE_CHECKING:
    from datasets import DatasetDict

TRIES = 8
"""How often the end of a piece is moved by the tokens that it has too many; one or two times are usual."""


class Token(NamedTuple):
    """A token's number in the vocabulary, and where in the text it ends."""

    number: int
    end: int


def pieces(length: int, **settings: Any) -> DatasetDict:
    """The documents of one length in tokens of the evaluated model's tokenizer."""
    source = Source(f"wikitext2_{length}", "wikitext-2-raw", settings)
    tokenizer = _tokenizer(source, settings)
    _check_context(source, settings, length)
    documents = list(cut(joined(source), tokenizer, length))
    if not documents:
        raise UserError(f"task {source.task}: the test split is shorter than one piece of {length} tokens; provide the official wiki.test.raw, whole")
    return source.splits(test=documents)


def joined(source: Source) -> str:
    """The whole test split as one text, its lines joined by empty ones, which is how the usual perplexity reads it."""
    if source.local is None:
        return "\n\n".join(source.hub("Salesforce/wikitext", "wikitext-2-raw-v1", "test", ("text",))["text"])
    path = source.file("wiki.test.raw")
    lines = path.read_text(encoding="utf-8").split("\n")
    # As the hub has them: blank lines empty, the others with their line break.
    return "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines[: -1 if not lines[-1] else None])


def cut(text: str, tokenizer: Any, length: int) -> Iterator[Row]:
    """Pieces that are `length` tokens each by themselves, in order: `context`, the first token (more where it is blank), `text`, the others, and `tokens`, how many others."""
    ends = sorted({token.end for token in _tokens(text, tokenizer)})
    # A tokenizer that puts a space before every text would make two of one that stands there.
    adds_space = _numbers("a b", tokenizer) == _numbers("a", tokenizer) + _numbers("b", tokenizer)
    start = 0
    while (first := bisect_right(ends, start)) + length <= len(ends):
        start += adds_space and text[start] == " "
        end = _end_of_piece(text, tokenizer, length, start, ends[first:])
        row = _row(text[start:end], tokenizer) if end else None
        if row:
            yield row
        start = end or ends[first]


def _end_of_piece(text: str, tokenizer: Any, length: int, start: int, ends: Sequence[int]) -> int | None:
    """Where a piece of `length` tokens ends that begins at `start`, among the ends of the whole text's tokens after it; None where no such piece is found."""
    place = length - 1
    for _ in range(TRIES):
        if not 0 <= place < len(ends):
            return None
        surplus = len(_tokens(text[start : ends[place]], tokenizer)) - length
        if not surplus:
            return ends[place]
        place -= surplus
    return None


def _row(piece: str, tokenizer: Any) -> Row | None:
    """A piece divided after its first token, or after the first that lm-eval leaves in the context (it moves blanks at the end of one into the text); None where there is none."""
    tokens = _tokens(piece, tokenizer)
    for given, token in enumerate(tokens[:-1], 1):
        context = piece[: token.end]
        if context.strip() and context == context.rstrip() and _numbers(context, tokenizer) == [other.number for other in tokens[:given]]:
            return {"context": context, "text": piece[token.end :], "tokens": len(tokens) - given}
    return None


def _tokens(text: str, tokenizer: Any) -> list[Token]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [Token(number, end) for number, (_, end) in zip(found["input_ids"], found["offset_mapping"], strict=True)]


def _numbers(text: str, tokenizer: Any) -> list[int]:
    return [token.number for token in _tokens(text, tokenizer)]


def _tokenizer(source: Source, settings: Mapping[str, Any]) -> Any:
    """The tokenizer of the model that is evaluated; lm-eval puts the model's arguments among a task's settings."""
    import transformers

    name = settings.get("tokenizer") or settings.get("pretrained")
    how = "give the model by --model_args pretrained=..., or its tokenizer by --metadata '{\"tokenizer\": \"...\"}'"
    if not name:
        raise UserError(f"task {source.task}: cuts the text into pieces of equal length in tokens, and no tokenizer is named: {how}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(name), revision=str(settings.get("revision") or "main"), trust_remote_code=bool(settings.get("trust_remote_code")))
    except (OSError, ValueError) as error:
        raise UserError(f"task {source.task}: the tokenizer of {name} cannot be loaded ({str(error).splitlines()[0]}); {how}") from error
    if not tokenizer.is_fast:
        raise UserError(f"task {source.task}: the tokenizer of {name} does not say where its tokens lie in the text (it is not a fast one); use lm-eval's `wikitext` instead")
    return tokenizer


def _check_context(source: Source, settings: Mapping[str, Any], length: int) -> None:
    """Refuse a model that cannot read a piece at once; lm-eval would stop in the middle of the run."""
    import transformers

    if not settings.get("pretrained"):
        return
    config = transformers.AutoConfig.from_pretrained(
        str(settings["pretrained"]), revision=str(settings.get("revision") or "main"), trust_remote_code=bool(settings.get("trust_remote_code"))
    )
    stated = [settings.get("max_length"), *(getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))]
    limit = next((int(value) for value in stated if value), length)
    if limit < length:
        raise UserError(f"task {source.task}: the model reads at most {limit} tokens at once, and the pieces have {length}; use wikitext2_128, or lm-eval's `wikitext`")


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Score one piece: the log-likelihood of what is predicted, over its tokens (`token_perplexity`) and over its bytes (`bits_per_byte`, for models with different tokenizers)."""
    ((likelihood, _),) = results
    return {"token_perplexity": (likelihood, doc["tokens"]), "bits_per_byte": (likelihood, len(doc["text"].encode()))}
