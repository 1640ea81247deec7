"""WikiText-2 perplexity over pieces of 128 or 2,048 tokens, as papers on low-rank compression report it.

lm-eval's `wikitext` scores whole pages and counts words; that number and these cannot be compared, nor these two with each other. The test split is joined, tokenised and cut
into pieces of equal length, the rest dropped; every token of a piece is predicted from the piece alone. Two choices differ from most papers' code: the piece's first token
is predicted too (from the model's start token), and a piece is handed over as text, so that a tokenizer may divide it anew at its two ends; the perplexity counts the tokens
that come out. The request is a continuation of nothing rather than lm-eval's rolling one, which for many tokenizers counts a second start token as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.task_data import Row, Source

if TYPE_CHECKING:
    from datasets import DatasetDict


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
    """Pieces of `length` tokens, cut where the tokens of the whole text end; `tokens` counts those of the piece by itself."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    for start in range(0, len(offsets) - length + 1, length):
        piece = text[offsets[start][0] : offsets[start + length - 1][1]]
        yield {"text": piece, "tokens": len(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])}


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
    """Score one piece: its log-likelihood, over its tokens (`token_perplexity`) and over its bytes (`bits_per_byte`, for models with different tokenizers)."""
    ((likelihood, _),) = results
    return {"token_perplexity": (likelihood, doc["tokens"]), "bits_per_byte": (likelihood, len(doc["text"].encode()))}
