"""Running text for tasks that score perplexity: WikiText-2 as one text, the tokenizer of the evaluated model, and text
that goes to a model by its token numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.task_data import Source

WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
"""That of the data set on the hub which LowRankArena's runner pins."""


class TokenText(str):
    """A text, and the token numbers that it stands for: what a tokenizer makes of the text alone may be others. A
    backend that knows it takes the numbers, any other the text.
    """

    tokens: tuple[int, ...]

    def __new__(cls, text: str, tokens: Sequence[int]) -> TokenText:
        made = super().__new__(cls, text)
        made.tokens = tuple(tokens)
        return made


def wikitext2(source: Source, split: str) -> str:
    """A whole split of WikiText-2 raw as one text, its lines joined by empty ones, which is how the usual perplexity
    reads it. Raises UserError where the data cannot be had.
    """
    if source.local is None:
        place = ("Salesforce/wikitext", "wikitext-2-raw-v1", split, ("text",))
        return "\n\n".join(source.hub(*place, WIKITEXT_REVISION)["text"])
    path = source.file(f"wiki.{split}.raw")
    lines = path.read_text(encoding="utf-8").split("\n")
    # As the hub has them: blank lines empty, the others with their line break.
    return "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines[: -1 if not lines[-1] else None])


def tokenizer_of(source: Source, settings: Mapping[str, Any]) -> Any:
    """The tokenizer of the model that is evaluated; lm-eval puts the model's arguments among a task's settings. Raises
    UserError where none is named or it cannot be loaded.
    """
    import transformers

    name = settings.get("tokenizer") or settings.get("pretrained")
    how = 'give the model by --model_args pretrained=..., or its tokenizer by --metadata \'{"tokenizer": "..."}\''
    if not name:
        raise UserError(
            f"task {source.task}: cuts the text into pieces of equal length in tokens, and no tokenizer is named: {how}"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(name),
            revision=str(settings.get("revision") or "main"),
            trust_remote_code=bool(settings.get("trust_remote_code")),
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"task {source.task}: the tokenizer of {name} cannot be loaded ({str(error).splitlines()[0]}); {how}"
        ) from error


def check_context(source: Source, settings: Mapping[str, Any], length: int, instead: str) -> None:
    """Refuse a model that cannot read so many tokens at once; lm-eval would stop in the middle of the run. instead:
    what such a model can be asked. Raises UserError.
    """
    import transformers

    if not settings.get("pretrained"):
        return
    config = transformers.AutoConfig.from_pretrained(
        str(settings["pretrained"]),
        revision=str(settings.get("revision") or "main"),
        trust_remote_code=bool(settings.get("trust_remote_code")),
    )
    named = ("n_positions", "max_position_embeddings", "n_ctx")
    stated = [settings.get("max_length"), *(getattr(config, name, None) for name in named)]
    limit = next((int(value) for value in stated if value), length)
    if limit < length:
        raise UserError(
            f"task {source.task}: the model reads at most {limit} tokens at once, and the pieces have {length}; use"
            f" {instead}"
        )
