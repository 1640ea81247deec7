"""Tasks that make more than one kind of request from a document, which lm-eval's YAML cannot say.

Each is lm-eval's `ConfigurableTask` with another `construct_requests`. A task file names one by `class: !function
harness_ext.task_requests.NAME`, and is otherwise like any other. The first request of a document is always (prompt,
...), so that prompts, hashes and calibration work as for every task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from harness_ext.lm_eval_adapter.running_text import TokenText, tokenizer_of
from harness_ext.lm_eval_adapter.task_data import Source

log = logging.getLogger("lm_eval.recipes")


class RequestsTask(ConfigurableTask):
    """A `ConfigurableTask` that lm-eval can make from a file with a `class` key."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def continuation(self, answer: str, **kwargs: Any) -> str:
        """An answer as it follows the prompt: after lm-eval's delimiter, except where a chat template ends the
        prompt.
        """
        return answer if kwargs.get("apply_chat_template") else f"{self.config.target_delimiter}{answer}"

    def instance(
        self, request_type: str, document: dict[str, Any], arguments: tuple[Any, ...], index: int, **kwargs: Any
    ) -> Instance:
        """One request of a document; `index` is its position among the document's results, from 0."""
        fields = {key: value for key, value in kwargs.items() if key not in ("apply_chat_template", "chat_template")}
        return Instance(request_type=request_type, doc=document, arguments=arguments, idx=index, **fields)


class OpenAnswer(RequestsTask):
    """Generates an answer and, on the same prompt, scores the right one: results are [generated text, (log-likelihood,
    is greedy)].
    """

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Two requests: `generate_until`, and `loglikelihood` of the target."""
        target = self.continuation(str(self.doc_to_target(doc)), **kwargs)
        return [
            self.instance("generate_until", doc, (ctx, dict(self.config.generation_kwargs or {})), 0, **kwargs),
            self.instance("loglikelihood", doc, (ctx, target), 1, **kwargs),
        ]


class RankedAnswer(RequestsTask):
    """Scores the right answer and, where the backend can (`answer_rank`), asks for the rank of the answer's first token
    among all tokens.

    Results are [(log-likelihood, is greedy)] or [(log-likelihood, is greedy), rank]. `ranks` is set by whoever knows
    the backend.
    """

    ranks = False

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """`loglikelihood` of the target, and its rank where `ranks` is set."""
        arguments = (ctx, self.doc_to_target(doc))
        kinds = ("loglikelihood", "answer_rank") if self.ranks else ("loglikelihood",)
        return [self.instance(kind, doc, arguments, index, **kwargs) for index, kind in enumerate(kinds)]


class TokenWindow(RequestsTask):
    """Scores a window of token numbers (`window` of a document), the first of which is given. `as_text` is set by
    whoever knows that the backend takes the text of a window in their place.
    """

    as_text = False

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """One `loglikelihood` of all tokens but the first."""
        if self.as_text:
            self._warn_of_start_token()
            self.as_text = False  # said once
        first, *others = doc["window"]
        arguments = (TokenText(ctx, [first]), TokenText(str(self.doc_to_target(doc)), others))
        return [self.instance("loglikelihood", doc, arguments, 0, **kwargs)]

    def _warn_of_start_token(self) -> None:
        settings = self.config.metadata or {}
        tokenizer = tokenizer_of(Source(str(self.config.task), "", settings), settings)
        if settings.get("add_bos_token") is not False and tokenizer.bos_token_id in tokenizer("a")["input_ids"]:
            log.warning(
                "Task %s: without --recipe its windows go to the model as texts, and the tokenizer puts %s before each,"
                " so that the perplexity is not the protocol's; add --recipe baseline, which hands over their tokens",
                self.config.task,
                tokenizer.bos_token,
            )


@contextmanager
def windows_as_text() -> Iterator[None]:
    """Inside this block the backend is lm-eval's own, which takes texts alone."""
    before = TokenWindow.as_text
    TokenWindow.as_text = True
    try:
        yield
    finally:
        TokenWindow.as_text = before
