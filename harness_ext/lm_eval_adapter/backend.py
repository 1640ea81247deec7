"""lm-eval's HF backend with editable weights.

`simple_evaluate(model="hf-recipe", model_args="pretrained=...,recipe=laser", ...)` edits the model once, as it is made.
The command line makes the model without a recipe, then applies, scores and undoes one recipe after another. Scoring is
lm-eval's.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from harness_ext.calibration.cache import StatisticsCache
from harness_ext.calibration.context import EditableModel
from harness_ext.editing.pipeline import AppliedRecipe, DrawDocuments, apply_recipe
from harness_ext.editing.records import totals
from harness_ext.errors import UserError, VariantFailed
from harness_ext.linalg.cache import lasting
from harness_ext.linalg.decompose import Decomposer
from harness_ext.lm_eval_adapter.admission import check_arguments, has_encoder, refuse_calibrated
from harness_ext.lm_eval_adapter.answer_ranks import PROMPTS_AT_ONCE, ranks_of_answers
from harness_ext.lm_eval_adapter.flag_values import check_present
from harness_ext.lm_eval_adapter.learned_documents import documents_of_named_tasks, learned_from, refuse_learned
from harness_ext.lm_eval_adapter.offloaded import FileEditor
from harness_ext.lm_eval_adapter.running_text import TokenText
from harness_ext.lm_eval_adapter.scoring_progress import counted_requests
from harness_ext.lm_eval_adapter.shared_scoring import SharedWindows, shared_out
from harness_ext.lm_eval_adapter.throughput import Speed, first_pass, seconds_since
from harness_ext.lm_eval_adapter.unchanged import EncodedPairs
from harness_ext.model.checkpoint import Checkpoint, adapter_inside, quantisation_method
from harness_ext.model.completeness import WholeModels, refusing_incomplete_adapters
from harness_ext.model.dequantize import (
    asks_to_dequantize,
    check_dequantize,
    dense_quantization,
    forget_packing,
    one_set_of_settings,
    packed_as,
    refuse_quantised,
    unpacked,
    unpacked_gguf,
)
from harness_ext.model.offload import is_offloaded
from harness_ext.model.safetensors_header import StoredTensor
from harness_ext.model.size import size_of
from harness_ext.model.weights import Weights
from harness_ext.progress import Progress, Stage
from harness_ext.ranks.group import ALONE, current
from harness_ext.recipe.recipe import Recipe, parse_recipe
from harness_ext.storage.resume import ResumeState
from harness_ext.storage.rundir import scratch_folder

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook


class RecipeLM(HFLM):
    """lm-eval's `hf` backend, its weights edited by a recipe.

    pretrained: as in lm-eval, or `demo` for the embedded model. recipe: a specification as on the command line (see
    `parse_recipe`), or None. dequantize: whether to load a quantised checkpoint as plain weights. Everything else is
    lm-eval's.

    Raises UserError where the recipe does not fit the model, or the weights cannot be edited.
    """

    AUTO_MODEL_CLASS: Any

    def __init__(
        self, pretrained: str = "demo", recipe: str | None = None, dequantize: bool | None = None, **kwargs: Any
    ) -> None:
        asked = parse_recipe(recipe) if recipe else None
        self._dequantize = asks_to_dequantize({**kwargs, "dequantize": dequantize})
        self.dequantized_from: str | None = None
        self._learned: frozenset[str] = frozenset()
        self.progress: Progress | None = None
        self.speed = Speed()
        self.recipe: Recipe | None = None
        self.applied: AppliedRecipe | None = None
        self.unexpected_weights: list[str] = []
        self.layers_on: torch.device | None = None
        self.files: FileEditor | None = None
        self._from_files = False
        self._weights: Weights | None = None
        self._encoded = EncodedPairs()
        # With tp_plan all ranks are one model, and each takes part in every batch.
        self.is_cut = bool(kwargs.get("tp_plan"))
        self._ranks = ALONE if self.is_cut else current()
        self._windows: SharedWindows | None = None
        self._choices: Stage | None = None
        if pretrained == "demo" and not Path("demo", "config.json").is_file():
            from harness_ext.demo import demo_path

            pretrained = str(demo_path())
        if isinstance(pretrained, str):
            if asked is not None and asked.steps:
                check_arguments({"pretrained": pretrained, **kwargs})
            self.loaded_from = str(Path(pretrained, str(kwargs.get("subfolder") or "")))
        else:  # from Python: a model in memory
            if self._dequantize:
                raise UserError("dequantize is for a checkpoint, and this model is loaded: call its dequantize() first")
            self.loaded_from = str(pretrained.config.name_or_path)
            if kwargs.get("backend", "default") == "default":
                kwargs["backend"] = backend_of(pretrained)
        # lm-eval's own default is a CUDA device, whether or not there is one.
        kwargs.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        if not kwargs.get("parallelize"):
            check_present(str(kwargs["device"]))
        super().__init__(pretrained=pretrained, **kwargs)
        # Requests are shared out here (`shared_scoring`), not by lm-eval.
        self._rank, self._world_size = 0, 1
        # Not in `_create_model`, which lm-eval runs before it knows how to tokenise calibration documents.
        if asked is not None and asked.steps:
            try:
                applied = self.apply(asked, documents_of_named_tasks)
            except VariantFailed as error:
                raise UserError(f"recipe {asked.label!r} cannot be applied to this model: {error}") from error
            self._learned = learned_from(asked, applied)

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's facts about the model, plus the recipe that was applied and the digest of the weights as they
        are: by these a results file without a receipt is known for one of an edited model.
        """
        info = super().get_model_info()
        if self.recipe is not None:
            info |= {
                "recipe": self.recipe.label,
                "recipe_name": self.recipe.name,
                "recipe_id": self.recipe.recipe_id,
                "recipe_control": self.recipe.control,
                "recipe_control_of": self.recipe.control_of,
                "weights_digest": self.weights.digest(),
            }
            if self.recipe.revisions:
                info["recipe_revisions"] = self.recipe.revisions
        return info

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        """Load the model as lm-eval does, and refuse a checkpoint or an adapter that is not whole."""
        self._arguments = dict(kwargs)
        loader, stored = self.AUTO_MODEL_CLASS, self.config.to_dict()
        self.AUTO_MODEL_CLASS = WholeModels(loader, self.unexpected_weights.extend, self._settled)
        try:
            if self._dequantize:
                check_dequantize(pretrained, stored)
                kwargs["quantization_config"] = dense_quantization(stored)
            if kwargs.get("gguf_file") and kwargs.get("quantization_config") is None:
                kwargs["quantization_config"] = unpacked_gguf()
            with one_set_of_settings(), refusing_incomplete_adapters(str(kwargs.get("peft"))):
                super()._create_model(pretrained, **kwargs)
        finally:
            self.AUTO_MODEL_CLASS = loader
        if packed_as(self.model.config) is None:
            self.dequantized_from = quantisation_method(stored)

    def _settled(self, model: Any) -> Any:
        """What becomes of a model of transformers as soon as it is loaded."""
        if self._dequantize:
            return unpacked(model)
        unasked = quantisation_method(self.config.to_dict()) and packed_as(model.config) is None
        return forget_packing(model) if unasked else model

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse lm-eval's cache of answers, which another recipe would share. Raises UserError."""
        if self.recipe is not None and cache_hook.dbdict is not None:
            raise UserError(
                f"--use_cache cannot be combined with a recipe ({self.recipe.label!r}): its cache is keyed by the"
                " prompts alone and would return answers of another recipe or of the unedited model; leave it out"
            )
        super().set_cache_hook(cache_hook)

    # All of lm-eval's calls of the model go through these two; they are timed, not changed.

    def _model_call(
        self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        started = time.perf_counter()
        logits = super()._model_call(inps, attn_mask=attn_mask, labels=labels)
        self.speed.scored(inps, seconds_since(started, logits))
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        started = time.perf_counter()
        with first_pass(self.model) as first:
            tokens = super()._model_generate(context, *args, **kwargs)
        self.speed.generated(context, tokens, first.seconds, seconds_since(started, tokens))
        return tokens

    # lm-eval draws a bar for each kind of request, also where no terminal can show it; `progress`, where it is set,
    # tells instead.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's, counted by `progress`."""
        refuse_learned(self.recipe, self._learned, requests)
        with self._counted("choices", requests) as self._choices, shared_out(self._ranks):
            try:
                return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self.progress is not None)
            finally:
                self._choices = None

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """lm-eval's, counted by `progress`: in windows of the model's length, so that nobody knows of how many."""
        refuse_learned(self.recipe, self._learned, requests)
        with counted_requests(self.progress, f"{len(requests):,} texts", None, "windows"):
            score = partial(super().loglikelihood_rolling, requests, disable_tqdm or self.progress is not None)
            if self._ranks.ranks == 1:
                return score()
            self._windows = SharedWindows(self._ranks)
            try:
                score()
                self._windows.gather()
                return score()
            finally:
                self._windows = None

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's, counted by `progress`."""
        refuse_learned(self.recipe, self._learned, requests)
        with self._counted("generations", requests), shared_out(self._ranks):
            return super().generate_until(requests, disable_tqdm=disable_tqdm or self.progress is not None)

    def _counted(self, what: str, requests: Sequence[Instance]) -> AbstractContextManager[Stage | None]:
        return counted_requests(self.progress, what, math.ceil(len(requests) / self._ranks.ranks))

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """lm-eval's; while texts are scored in windows, of every n-th call in each rank."""
        if self._choices is not None and self._ranks.ranks == 1:
            # They are answered so, the longest first.
            self._choices.weigh(sorted((len(context) + len(answer) for _, context, answer in requests), reverse=True))
        score = partial(super()._loglikelihood_tokens, requests, *args, **kwargs)
        return score() if self._windows is None else self._windows.answers(len(requests), score)

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        """lm-eval's: the smallest that any rank finds, since all form the same batches."""
        if self._windows is not None and self._windows.batch_size is not None:
            return self._windows.batch_size
        size = min(self._ranks.exchange("batch size", super()._detect_batch_size(requests, pos)))
        if self._windows is not None:
            self._windows.batch_size = size
        return int(size)

    def answer_rank(self, requests: list[Instance]) -> list[int]:
        """The rank of each answer's first token among all tokens that could come next: one more than the number of
        likelier ones.

        A kind of request that lm-eval does not have: only tasks that were told of it ask (see
        `harness_ext.lm_eval_adapter.task_types.RankedAnswer`).
        """
        size = self.batch_size if isinstance(self.batch_size, int) else PROMPTS_AT_ONCE
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        with (self.progress or Progress()).stage("ranks", len(batches), "batches") as stage:

            def answered(batch: Sequence[Instance]) -> list[int]:
                stage.advance()
                return ranks_of_answers(self, batch)

            return [rank for found in self._ranks.in_shares("ranks", batches, answered) for rank in found]

    # A token beyond the embedding is an error of an index on a CPU, and kills the process's use of a GPU.

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """lm-eval's. Raises UserError where the tokenizer gives tokens that the model does not have."""
        tokens: list[int] = super().tok_encode(string, *args, **kwargs)
        self._refuse_unknown(max(tokens, default=0))
        return tokens

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """lm-eval's. Raises UserError where the tokenizer gives tokens that the model does not have."""
        tokens, mask = super().tok_batch_encode(strings, *args, **kwargs)
        self._refuse_unknown(int(tokens.max()) if tokens.numel() else 0)
        return tokens, mask

    def _refuse_unknown(self, token: int) -> None:
        if token >= self._known_tokens:
            raise UserError(
                f"the tokenizer gives the token {token}, and the model ({self.loaded_from}) knows"
                f" {self._known_tokens:,.0f}: it belongs to another model; name this model's own, --model_args"
                " tokenizer=NAME"
            )

    @cached_property
    def _known_tokens(self) -> float:
        """Rows of the model's embedding; infinite where that cannot be told."""
        try:
            rows = self.model.get_input_embeddings().weight.shape[0]
        except (AttributeError, NotImplementedError):
            return float("inf")
        return float(rows)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """lm-eval's, worked out once for all variants; token numbers as they are where a request has them."""
        if isinstance(context, TokenText) and isinstance(continuation, TokenText):
            self._refuse_unknown(max(*context.tokens, *continuation.tokens))
            return list(context.tokens), list(continuation.tokens)
        encoder = (self.tokenizer, self.backend, self.add_bos_token)
        return self._encoded.get((context, continuation), encoder, super()._encode_pair)

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt that is not empty, and those of what follows it, split as lm-eval splits them."""
        return self._encode_pair(context, continuation)

    @property
    def weights(self) -> Weights:
        """The model's weights, for reading, editing and undoing; the scratch folder lives as long as this object."""
        self._tie_offloaded()
        if self._weights is None:
            scratch = scratch_folder()
            weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
            self._refuse_quantised()
            if getattr(self.model, "_hf_peft_config_loaded", False):
                raise UserError(adapter_inside(str(self.pretrained)))
            self.merge_adapter()
            self._weights = Weights(self.model, scratch)
            self._decomposer, self._statistics_cache = Decomposer(lasting(scratch)), StatisticsCache(scratch)
            # Before the scratch folder goes, what is still being written there is: the last to come is called first.
            weakref.finalize(self, self._decomposer.flush)
        return self._weights

    @property
    def editable(self) -> EditableModel:
        """This model, with what edits of it are made from."""
        return EditableModel(self, self.weights, self._decomposer, self._statistics_cache, self.layers_on)

    def apply(
        self,
        recipe: Recipe,
        documents: DrawDocuments,
        progress: Progress | None = None,
        resume: ResumeState | None = None,
    ) -> AppliedRecipe:
        """Edit the weights; `undo` puts them back. A failure in the middle puts them back before it is raised. See
        `apply_recipe`.
        """
        if self.files is not None:
            return self._apply_to_files(recipe, self.files)
        with ExitStack() as undo_on_failure:
            undo_on_failure.callback(self.weights.restore)
            self.check_editable([recipe])
            self.applied = apply_recipe(self.editable, recipe, documents, progress, resume)
            undo_on_failure.pop_all()
        self.recipe = recipe
        return self.applied

    def undo(self) -> None:
        """Put the weights back, bit for bit."""
        self.recipe = self.applied = None
        if self.files is None:
            self.weights.restore()
            return
        self.files.discard()
        if self._from_files:
            self._load_anew(self.pretrained)
            self._from_files = False

    def _tie_offloaded(self) -> None:
        """Of weights that two layers share, a forward pass of an offloaded model leaves each layer a parameter."""
        if is_offloaded(self.model):
            self.model.tie_weights()

    def _apply_to_files(self, recipe: Recipe, files: FileEditor) -> AppliedRecipe:
        """Load an edited checkpoint in the place of the model, which cannot be edited in memory. Raises RuntimeError
        where what was loaded is not what was written.
        """
        edited = files.edit(recipe)
        self._from_files = True
        self._load_anew(str(edited.folder), revision="main", subfolder="")
        if self.weights.digest() != edited.digest:
            raise RuntimeError(f"the weights loaded from {edited.folder} are not those that were written there")
        self.recipe, self.applied = recipe, edited.applied
        return edited.applied

    def _load_anew(self, pretrained: str, **changes: Any) -> None:
        """Load another checkpoint as this one was loaded. The memory of what is there is given back first."""
        unexpected = list(self.unexpected_weights)
        self._weights = None
        self._model: Any = None
        gc.collect()
        self._create_model(pretrained, **{**self._arguments, **changes})
        self.unexpected_weights[:] = unexpected
        self.model.eval()
        self.model.tie_weights()

    def totals(self) -> dict[str, Any]:
        """Parameters, bytes and operations of the model, before and after what was applied."""
        self._tie_offloaded()
        if self.applied:
            return totals(self.weights.size, self.applied.records, self.weights.added()).to_json()
        return totals(size_of(self.model)).to_json()

    def check_editable(self, recipes: Sequence[Recipe]) -> None:
        """Raise UserError where these recipes cannot be applied to a model of this kind, before anything is scored."""
        if any(recipe.steps for recipe in recipes):
            self._refuse_quantised()
            if self.files is not None:
                self.files.check(recipes)
        if has_encoder(self.model):
            refuse_calibrated(recipes, str(self.model.config.model_type))

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded model as a checkpoint's headers would describe it."""
        tensors = {
            name: StoredTensor(tuple(value.shape), f"F{8 * value.element_size()}")
            for name, value in self.model.named_parameters()
        }
        return Checkpoint(self.loaded_from, self.model.config.to_dict(), tensors)

    def _refuse_quantised(self) -> None:
        if (method := packed_as(self.model.config)) is not None:
            refuse_quantised(self.loaded_from or "the model", method)

    def merge_adapter(self) -> None:
        """Make an adapter part of the weights: an edit of the base weight alone would leave the adapter's part of the
        matrix outside the decomposition.
        """
        if hasattr(self.model, "merge_and_unload"):
            self._model = self.model.merge_and_unload()


def backend_of(model: Any) -> str:
    """lm-eval's `backend` for a model in memory. lm-eval itself goes by the model's type, which a decoder by itself
    (`BartForCausalLM`) has in common with the whole model.
    """
    return "seq2seq" if has_encoder(model) else "causal"
