"""A stand-in for an inference engine: lm-eval's Hugging Face backend behind the interface that vLLM has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file


class StandInModel:
    """What `vllm.LLM` is asked for. prefix_cache: answers by text, as an engine keeps what it computed of prompts."""

    def __init__(self, inner: HFLM, faults: frozenset[str]) -> None:
        self.inner = inner
        self.faults = faults
        self.prefix_cache: dict[tuple[str, str], tuple[float, bool]] = {}
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))
        self.reloaded: list[str] = []

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        if "raises" in self.faults:
            raise NotImplementedError("reload_weights is not for this model")
        self.reloaded.append(kwargs["weights_path"])
        if "does nothing" in self.faults:
            return
        state: dict[str, torch.Tensor] = {}
        # vLLM takes a name that is no folder for one of the hub, of no revision.
        named = Path(kwargs["weights_path"])
        folder = named if named.is_dir() else Path(hf_hub_download(str(named), "config.json")).parent
        for path in sorted(folder.glob("*.safetensors")):
            state |= load_file(path)
        self.inner.model.load_state_dict(state, strict=False)
        self.inner.model.tie_weights()
        if "drifts" in self.faults:
            self.inner.model.get_input_embeddings().weight.data += 1e-4 * len(self.reloaded)

    def reset_prefix_cache(self) -> bool:
        if "keeps its cache" in self.faults:
            return False
        self.prefix_cache.clear()
        return True

    def generate(self, requests: list[tuple[str, str]], use_tqdm: bool = True) -> list[SimpleNamespace]:
        instances = [SimpleNamespace(args=pair, request_type="loglikelihood") for pair in requests]
        new = [place for place, pair in enumerate(requests) if pair not in self.prefix_cache]
        answers = self.inner.loglikelihood([instances[place] for place in new], disable_tqdm=True) if new else []
        self.prefix_cache |= {requests[place]: answer for place, answer in zip(new, answers)}
        return [
            SimpleNamespace(
                prompt_token_ids=self.inner.tok_encode("".join(pair)),
                prompt_logprobs=self.prefix_cache[pair],
                outputs=[SimpleNamespace(token_ids=[0])],
            )
            for pair in requests
        ]


class StandInEngine(LM):
    """What lm-eval's `VLLM` is, of a model in memory. Every one that was made is in `made`, with its arguments."""

    made: ClassVar[list[StandInEngine]] = []
    faults: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, pretrained: str, tokenizer: str | None = None, revision: str = "main", **arguments: Any) -> None:
        super().__init__()
        self.arguments = {"pretrained": pretrained, "tokenizer": tokenizer, **arguments}
        self.made.append(self)
        loaded = {"pretrained": pretrained, "revision": revision, "tokenizer": tokenizer}
        inner = HFLM(**loaded, device="cpu", batch_size=16, dtype="float32")
        self.copies = StandInModel(inner, self.faults)
        if arguments.get("data_parallel_size", 1) <= 1:
            self.model = self.copies

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [output.prompt_logprobs for output in self.copies.generate([request.args for request in requests])]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError
