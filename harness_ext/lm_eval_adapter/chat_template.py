"""The chat template of a model, tried before the model is loaded: it is a program of anybody's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from harness_ext.calibration.documents import PromptSettings

PATIENCE_SECONDS = 60.0
_LONGEST_FRAME = 1_000_000


class ChatTemplate:
    """The chat template of a model that is not loaded yet, as lm-eval will apply it.

    model_args: lm-eval's. Raises UserError where the tokenizer cannot be had, or has no template of that name.
    """

    def __init__(self, model_args: Mapping[str, Any], asked: bool | str) -> None:
        from harness_ext.lm_eval_adapter.fast_import import preload_hf

        preload_hf()
        from lm_eval.models.huggingface import HFLM

        self._lm = HFLM.__new__(HFLM)
        self._name = str(model_args.get("tokenizer") or model_args["pretrained"])
        thinking = model_args.get("enable_thinking")
        self._lm.chat_template_args = dict(model_args.get("chat_template_args") or {})
        if thinking is not None:
            self._lm.chat_template_args["enable_thinking"] = thinking
        try:
            self._lm._create_tokenizer(
                str(model_args["pretrained"]),
                model_args.get("tokenizer"),
                revision=str(model_args.get("revision") or "main"),
                trust_remote_code=model_args.get("trust_remote_code"),
                use_fast_tokenizer=model_args.get("use_fast_tokenizer", True),
                gguf_file=model_args.get("gguf_file"),
                add_bos_token=model_args.get("add_bos_token"),
                subfolder=str(model_args.get("subfolder") or ""),
            )
            found = self._lm.chat_template(asked)
        except Exception as error:
            # A tokenizer's files are of anybody's, and bring about errors of any kind.
            raise UserError(f"--apply_chat_template: {self._name}: {_first_line(error)}") from None
        if not found:
            raise UserError(
                f"--apply_chat_template: the tokenizer of {self._name} has no chat template, as is usual of base"
                " models: leave the flag out, or name the tokenizer of a chat model of this vocabulary,"
                " --model_args tokenizer=NAME"
            )

    def apply(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as one text; lm-eval's own, which leaves a system turn out where the template refuses it."""
        return self._lm.apply_chat_template(chat_history, add_generation_prompt)

    def _tried(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """`apply`, in `PATIENCE_SECONDS`. Raises ValueError where what the user says makes no difference to the text:
        some templates read a text as a list of parts, find none, and drop it.
        """
        other = [
            {**turn, "content": f"{turn['content']} x"} if turn["role"] == "user" else turn for turn in chat_history
        ]
        text, changed = _in_time(lambda: [self.apply(turns, add_generation_prompt) for turns in (chat_history, other)])
        if text == changed and other != chat_history:
            raise ValueError("it leaves out what the user says")
        if len(text) > _LONGEST_FRAME + 10 * sum(len(turn["content"]) for turn in chat_history):
            raise ValueError(f"it makes {len(text):,} characters of it")
        return text

    def check(self, task: Task, document: Any, settings: PromptSettings) -> None:
        """Raise UserError where the template refuses the conversation that a task makes of a document, takes forever
        over it, or leaves out what the user says.
        """
        try:
            task.fewshot_context(
                document,
                num_fewshot=task.config.num_fewshot or 0,
                system_instruction=settings.system_instruction,
                apply_chat_template=True,
                fewshot_as_multiturn=settings.fewshot_as_multiturn,
                chat_template=self._tried,
                gen_prefix=task.doc_to_prefix(document),
            )
        except Exception as error:
            # A template is a program of anybody's, and raises what it likes.
            raise UserError(
                f"--apply_chat_template: the template of {self._name} refuses the conversation of {task.task_name!r}"
                f" ({_first_line(error)}): try --fewshot_as_multiturn false, --num_fewshot 0 or no"
                " --system_instruction, or leave --apply_chat_template out"
            ) from None


def _in_time(compute: Callable[[], list[str]]) -> list[str]:
    """What `compute` returns. Raises whatever it does, and TimeoutError where it takes longer than `PATIENCE_SECONDS`;
    its thread then ends with the program.
    """
    outcome: queue.Queue[list[str] | Exception] = queue.Queue()

    def work() -> None:
        try:
            outcome.put(compute())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        found = outcome.get(timeout=PATIENCE_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"it has not ended after {PATIENCE_SECONDS:g} seconds") from None
    if isinstance(found, Exception):
        raise found
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
