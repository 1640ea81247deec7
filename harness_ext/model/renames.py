"""What a checkpoint's headers become when transformers 5 loads them, so that a plan speaks of the matrices that the run
will edit.

Loading renames and fuses: experts that are stored one by one become one parameter, names without the base model's
prefix get it, and what is no parameter of the model (masks and frequencies of older releases, an output head that
shares the embedding's weight) goes. For most architectures of `harness_ext.model.architectures` this is followed here,
without loading transformers; any other model is built by transformers from its config, without weights, and where that
cannot be done the headers are taken as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness_ext.errors import UserError
from harness_ext.model.architectures import Architecture, architecture_of, text_config
from harness_ext.model.built import built
from harness_ext.model.checkpoint import Checkpoint, quantisation_method
from harness_ext.model.safetensors_header import StoredTensor

_EXPERT = re.compile(r"(.+\.)(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_EXPERT_ROLES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
# `language_model.model.` is how wrapped language models were stored before transformers 5 renamed them.
_RENAMED = (
    (r"^embed_out\.", "lm_head."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"\.block_sparse_moe\.", ".mlp."),
)
_WRAPPED = re.compile(r"^(language_model|vision_tower|multi_modal_projector)\.")
_FOLLOWED_WRAPPERS = ("gemma3",)
_HEAD = "lm_head."


def as_loaded(checkpoint: Checkpoint, *, foreign_code: bool = False) -> Checkpoint:
    """The checkpoint with its config complete, and with the names and shapes that its tensors have in a loaded model.
    foreign_code: the model may be of a class that the checkpoint brings along, and transformers' own has other names.

    Raises UserError where the experts of a layer are not all there, or not all of one shape.
    """
    architecture = architecture_of(checkpoint.config)
    wrapped = text_config(checkpoint.config) is not checkpoint.config
    followed = not wrapped or checkpoint.config.get("model_type") in _FOLLOWED_WRAPPERS
    # Quantised weights are stored in names and shapes of their own.
    followed = followed and quantisation_method(checkpoint.config) is None
    if architecture is None or architecture.built or not followed or not checkpoint.tensors:
        foreign = foreign_code and "auto_map" in checkpoint.config
        made = None if foreign else built(checkpoint)
        if made is not None or architecture is None:
            return made or checkpoint
    config = _complete(checkpoint, architecture)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not _is_buffer(name, tensor)}
    tensors = _fused_experts(checkpoint.name, tensors)
    tensors = _renamed(tensors, architecture, wrapped=text_config(config) is not config)
    if bool(text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings", architecture.tied))):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
    return Checkpoint(checkpoint.name, config, tensors)


def _complete(checkpoint: Checkpoint, architecture: Architecture) -> Mapping[str, Any]:
    """The config with transformers' defaults, where it does not itself say what the attention geometry needs;
    transformers is loaded only then.
    """
    config = checkpoint.config
    missing = [key for key in architecture.geometry if key not in text_config(config)]
    if not missing:
        return config
    from transformers import AutoConfig

    options = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return {**config, **AutoConfig.for_model(config["model_type"], **options).to_dict()}
    except Exception as error:
        # Whatever a config's own checks raise: it was written by anyone.
        raise UserError(
            f"{checkpoint.name}: its config does not say {', '.join(missing)}, and transformers cannot complete it:"
            f" {error}"
        ) from None


def _is_buffer(name: str, tensor: StoredTensor) -> bool:
    return name.endswith(("masked_bias", "inv_freq")) or (name.endswith(".bias") and len(tensor.shape) == 4)


def _fused_experts(checkpoint: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    loaded: dict[str, StoredTensor] = {}
    experts: dict[str, dict[str, dict[int, StoredTensor]]] = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            role = _EXPERT_ROLES.get(match[3], match[3])
            experts.setdefault(f"{match[1]}mlp.experts", {}).setdefault(role, {})[int(match[2])] = tensor
        else:
            loaded[name] = tensor
    for module, roles in experts.items():
        (gate_rows, columns), (rows, inner), (count, dtype) = _expert_shapes(checkpoint, module, roles)
        loaded[f"{module}.gate_up_proj"] = StoredTensor((count, 2 * gate_rows, columns), dtype)
        loaded[f"{module}.down_proj"] = StoredTensor((count, rows, inner), dtype)
    return loaded


def _expert_shapes(
    checkpoint: str, module: str, roles: Mapping[str, Mapping[int, StoredTensor]]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, str]]:
    """The shapes of one expert's gate (and up), and of its down projection; then the number of experts and their
    dtype.
    """
    numbers = {tuple(sorted(of_role)) for of_role in roles.values()}
    kinds = {role: set(of_role.values()) for role, of_role in roles.items()}
    complete = (
        roles.keys() == {"gate_proj", "up_proj", "down_proj"}
        and len(numbers) == 1
        and numbers == {tuple(range(len(next(iter(numbers)))))}
    )
    if not complete or any(len(kind) != 1 for kind in kinds.values()) or kinds["gate_proj"] != kinds["up_proj"]:
        raise UserError(
            f"{checkpoint}: the experts under {module} are not all there, or not all of one shape and dtype; the recipe"
            " cannot be planned"
        )
    (gate,), (down,) = kinds["gate_proj"], kinds["down_proj"]
    return gate.shape, down.shape, (len(next(iter(numbers))), gate.dtype)


def _renamed(
    tensors: Mapping[str, StoredTensor], architecture: Architecture, *, wrapped: bool
) -> dict[str, StoredTensor]:
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = name
        for old, replacement in _RENAMED:
            new = re.sub(old, replacement, new)
        renamed[_WRAPPED.sub(r"model.\1.", new) if wrapped else new] = tensor
    if wrapped or any(name.startswith(architecture.base) for name in renamed):
        return renamed
    return {
        name if name.startswith(_HEAD) else f"{architecture.base}{name}": tensor for name, tensor in renamed.items()
    }
