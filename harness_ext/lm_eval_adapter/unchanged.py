"""What lm-eval works out anew for every variant of a session, though it stays the same: worked out once.

- Facts about the machine, for which lm-eval starts a dozen processes (`pip list` among them): collected beside the
  first scoring.
- The requests of a task: its documents, few-shot examples and prompts. They are built again where anything differs that
  they are built from: the arguments, the task's configuration, or the state of a random generator. Where they are not,
  the generators are left as building would have left them.
- The tokens of requests (`EncodedPairs`, held by the model).
"""

from __future__ import annotations

import os
import random
import threading
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_ext.lm_eval_adapter.borrowed import replaced

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

_KEPT_TOKENS = 1 << 24
"""Tokens that are kept for the next variant: 64 MiB."""


class _Built(NamedTuple):
    """A task's requests. arguments: given to lm-eval; before and after: states of the random generators around it."""

    arguments: dict[str, Any]
    configuration: str
    before: list[Any]
    after: list[Any]
    requests: list[Instance]


class Unchanged:
    """What the variants of a session have in common. It holds the tasks it was asked about."""

    def __init__(self) -> None:
        self._environment: Future[dict[str, Any]] | None = None
        self._built: dict[int, tuple[Task, _Built]] = {}

    def collect(self) -> None:
        """Begin to collect the machine's facts, beside what takes long."""
        from harness_ext.lm_eval_adapter.borrowed import add_env_info

        if self._environment is None:
            self._environment = _in_background(partial(_collected, add_env_info))

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Inside this block lm-eval takes from here what it would work out again."""
        from lm_eval.api.task import Task

        from harness_ext.lm_eval_adapter.bootstrap import bootstrap_stderr
        from harness_ext.lm_eval_adapter.borrowed import evaluator, metrics

        self.collect()
        assert self._environment is not None
        # Before the first variant is scored, whose speed it would change.
        self._environment.exception()
        build = Task.build_all_requests
        faster = partial(bootstrap_stderr, metrics.bootstrap_stderr)
        with ExitStack() as stack:
            stack.enter_context(replaced(evaluator, "add_env_info", self._add_env_info))
            stack.enter_context(replaced(Task, "build_all_requests", self._building(build)))
            stack.enter_context(replaced(metrics, "bootstrap_stderr", faster))
            yield

    def _add_env_info(self, storage: dict[str, Any]) -> None:
        from harness_ext.lm_eval_adapter.borrowed import get_commit_from_path

        assert self._environment is not None
        storage.update(self._environment.result())
        storage["upper_git_hash"] = get_commit_from_path(Path(os.getcwd(), ".."))

    def _building(self, build: Callable[..., None]) -> Callable[..., None]:
        def build_all_requests(task: Task, **arguments: Any) -> None:
            configuration, before = repr(task.dump_config()), _random_states(task)
            kept = self._built.get(id(task))
            if kept is not None and _holds(kept[1], task, arguments, configuration, before):
                for request in kept[1].requests:
                    # New ones, since those of the last variant are in its samples.
                    request.resps, request.filtered_resps = [], {}
                _restore_random_states(task, kept[1].after)
                return
            build(task, **arguments)
            built = _Built(arguments, configuration, before, _random_states(task), task.instances)
            self._built[id(task)] = (task, built)

        return build_all_requests


def _holds(built: _Built, task: Task, arguments: dict[str, Any], configuration: str, before: list[Any]) -> bool:
    return (
        built.requests is task.instances
        and built.arguments == arguments
        and built.configuration == configuration
        and built.before == before
    )


def _in_background(work: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
    """Start work that must not keep the process from ending."""
    future: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="facts about the machine").start()
    return future


def _collected(add_env_info: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    add_env_info(facts)
    return facts


def _own_generators(task: Task) -> list[random.Random]:
    """The generators that a task draws few-shot examples with."""
    own = [getattr(task, "fewshot_rnd", None), getattr(getattr(task, "sampler", None), "rnd", None)]
    return [generator for generator in own if isinstance(generator, random.Random)]


def _random_states(task: Task) -> list[Any]:
    import numpy as np
    import torch

    kind, key, *rest = np.random.get_state(legacy=True)
    shared = [random.getstate(), (kind, np.asarray(key).tobytes(), *rest), torch.get_rng_state().numpy().tobytes()]
    return shared + [generator.getstate() for generator in _own_generators(task)]


def _restore_random_states(task: Task, states: list[Any]) -> None:
    import numpy as np
    import torch

    own, (kind, key, *rest), torchs, *tasks = states
    random.setstate(own)
    np.random.set_state((kind, np.frombuffer(key, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.frombuffer(bytearray(torchs), dtype=torch.uint8))
    for generator, state in zip(_own_generators(task), tasks, strict=True):
        generator.setstate(state)


class EncodedPairs:
    """The tokens of prompts and answers, kept for the next variant up to a bound of memory."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[str, str], tuple[array[int], array[int]]] = {}
        self._room = _KEPT_TOKENS
        self._encoder: tuple[Any, ...] = ()

    def get(
        self, pair: tuple[str, str], encoder: tuple[Any, ...], encode: Callable[[str, str], tuple[list[int], list[int]]]
    ) -> tuple[list[int], list[int]]:
        """The tokens of a prompt and its answer. encoder: all that the tokens depend on; where it is another than
        before, nothing is taken from here.
        """
        if len(encoder) != len(self._encoder) or any(
            one is not other for one, other in zip(encoder, self._encoder, strict=True)
        ):
            self._tokens, self._room, self._encoder = {}, _KEPT_TOKENS, encoder
        kept = self._tokens.get(pair)
        if kept is not None:
            return kept[0].tolist(), kept[1].tolist()
        prompt, answer = encode(*pair)
        self._room -= len(prompt) + len(answer)
        if self._room >= 0:
            self._tokens[pair] = (array("i", prompt), array("i", answer))
        return prompt, answer
