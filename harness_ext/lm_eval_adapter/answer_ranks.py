"""Ranks of answers: how many tokens a model finds likelier than the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from harness_ext.lm_eval_adapter.backend import RecipeLM

PROMPTS_AT_ONCE = 16
"""Prompts ranked at once where lm-eval finds its batch size by itself."""


def ranks_of_answers(lm: RecipeLM, requests: Sequence[Instance]) -> list[int]:
    """The ranks of the answers of one batch: of each the rank of its first token among all tokens that could come next,
    one more than the number of likelier ones.
    """
    pairs = [lm.encode_pair(*request.args) for request in requests]
    contexts = [torch.tensor(context[-lm.max_length :]) for context, _ in pairs]
    # Padded at the end, which a causal model does not see.
    padded = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True).to(lm.device)
    last = torch.tensor([len(context) - 1 for context in contexts], device=lm.device)
    logits = lm._model_call(padded)[torch.arange(len(pairs), device=lm.device), last]
    answers = torch.tensor([answer[0] for _, answer in pairs], device=lm.device)
    of_answers = logits.gather(1, answers[:, None])
    return ((logits > of_answers).sum(dim=1) + 1).tolist()
