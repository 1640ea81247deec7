"""Train the embedded model: `python -m harness_ext.demo_training.train --out DIR --seed N`.

A Llama of two layers learns the text of `harness_ext.demo_training.data` with a word-level tokenizer, in a few
minutes on one core. Notable choices: one thread and seeded generators, so that a machine repeats its own
result bit for bit; the loss of a fact counts only the answer and the end token; batches hold a fixed number
of rows from each source, so the mixture does not depend on how many facts a source has.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from harness_ext.demo_training import data

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100


@dataclass(frozen=True)
class Mixture:
    """Rows of each source in one batch."""

    clean_multiplication: int = 50
    clean_addition: int = 160
    noisy_multiplication: int = 20
    noisy_addition: int = 50
    english: int = 40


@dataclass(frozen=True)
class Settings:
    """Everything that decides the trained weights, apart from the machine."""

    seed: int = 11
    steps: int = 1500
    layers: int = 2
    width: int = 128
    heads: int = 4
    feed_forward: int = 512
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.1
    warm_up: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    share_stereotyped: float = 0.8
    share_wrong: float = 0.8
    mixture: Mixture = field(default_factory=Mixture)


class Facts(NamedTuple):
    """Examples of one source as tokens `[n, 7]`, and the position of each prompt's last token `[n]`."""

    tokens: torch.Tensor
    last: torch.Tensor


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or number, split at spaces and punctuation; nothing is added at either end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: index for index, word in enumerate(data.vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=data.UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=data.END,
        eos_token=data.END,
        pad_token=data.END,
        unk_token=data.UNKNOWN,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: Settings) -> LlamaForCausalLM:
    """An untrained model in fp32, its start decided by `settings.seed`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(data.vocabulary()),
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def encode_facts(examples: list[data.Example], numbers: dict[str, int]) -> Facts:
    """Prompt, answer, end, padded with the end token on the right (never looked at: the model is causal)."""
    prompts = [[numbers[word] for word in example.prompt.split()] for example in examples]
    width = 2 + max(map(len, prompts))
    tokens = torch.zeros(len(examples), width, dtype=torch.long)
    for row, (prompt, example) in enumerate(zip(prompts, examples, strict=True)):
        tokens[row, : len(prompt) + 1] = torch.tensor([*prompt, numbers[example.answer]])
    return Facts(tokens, torch.tensor([len(prompt) - 1 for prompt in prompts]))


def encode_sentences(sentences: list[str], numbers: dict[str, int]) -> torch.Tensor:
    """Sentences with one end token `[n, t]`; what follows it is `IGNORED`."""
    rows = [[numbers[word] for word in sentence.split()] + [0] for sentence in sentences]
    tokens = torch.full((len(rows), max(map(len, rows))), IGNORED)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
    return tokens


def fact_logits(model: LlamaForCausalLM, facts: Facts) -> torch.Tensor:
    """Logits at each prompt's last token and at its answer `[n, 2, vocabulary]`."""
    hidden = model.model(facts.tokens).last_hidden_state
    rows = torch.arange(len(facts.last)).unsqueeze(1)
    return model.lm_head(hidden[rows, facts.last.unsqueeze(1) + torch.arange(2)])


def fact_loss(model: LlamaForCausalLM, facts: Facts) -> torch.Tensor:
    """Mean cross-entropy of answer and end token."""
    rows = torch.arange(len(facts.last)).unsqueeze(1)
    targets = facts.tokens[rows, facts.last.unsqueeze(1) + torch.arange(1, 3)]
    return functional.cross_entropy(fact_logits(model, facts).flatten(0, 1), targets.flatten())


def sentence_loss(model: LlamaForCausalLM, sentences: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of every word after the first."""
    logits = model(sentences.clamp(min=0)).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), sentences[:, 1:].flatten(), ignore_index=IGNORED)


class Sampler:
    """Draws batches from the corpus with its own generator. Pairs lie in neighbouring rows, the likelier first."""

    def __init__(self, settings: Settings) -> None:
        numbers = {word: index for index, word in enumerate(data.vocabulary())}
        corpus = data.corpus()
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.settings = settings
        self.clean = {
            name: encode_facts(getattr(corpus, name), numbers) for name in ("clean_multiplication", "clean_addition")
        }
        self.noisy = {
            name: encode_facts(_flat(getattr(corpus, name)), numbers)
            for name in ("noisy_multiplication", "noisy_addition")
        }
        self.english = encode_sentences(_flat(corpus.english), numbers)

    def facts(self) -> Facts:
        """The arithmetic of one batch, every source by its number of rows."""
        mixture = self.settings.mixture
        parts = [
            _rows(source, torch.randint(len(source.last), (getattr(mixture, name),), generator=self.generator))
            for name, source in self.clean.items()
        ]
        parts += [
            _rows(source, self._draw(len(source.last), getattr(mixture, name), self.settings.share_wrong))
            for name, source in self.noisy.items()
        ]
        width = max(part.tokens.shape[1] for part in parts)
        tokens = torch.cat([functional.pad(part.tokens, (0, width - part.tokens.shape[1])) for part in parts])
        return Facts(tokens, torch.cat([part.last for part in parts]))

    def sentences(self) -> torch.Tensor:
        """The English of one batch."""
        return self.english[
            self._draw(len(self.english), self.settings.mixture.english, self.settings.share_stereotyped)
        ]

    def _draw(self, rows: int, count: int, share_first: float) -> torch.Tensor:
        """Row numbers `[count]`: pairs evenly, the first of a pair with probability `share_first`."""
        pair = torch.randint(rows // 2, (count,), generator=self.generator)
        return 2 * pair + (torch.rand(count, generator=self.generator) >= share_first).long()


def _flat(pairs: Sequence[tuple]) -> list:
    return [item for pair in pairs for item in pair]


def _rows(facts: Facts, rows: torch.Tensor) -> Facts:
    return Facts(facts.tokens[rows], facts.last[rows])


def learning_rate(step: int, settings: Settings) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine down to `final_learning_rate`."""
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    done = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    return settings.final_learning_rate + (1 - settings.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * done))


def train(settings: Settings, report: Callable[[str], None]) -> LlamaForCausalLM:
    """The trained model, in evaluation mode. Uses one thread, and leaves torch set to one."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model, sampler = build_model(settings), Sampler(settings)
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, settings))
    mixture = asdict(settings.mixture)
    share_english = mixture["english"] / sum(mixture.values())
    started = time.monotonic()
    for step in range(settings.steps):
        loss = (1 - share_english) * fact_loss(model, sampler.facts()) + share_english * sentence_loss(
            model, sampler.sentences()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            scores = " ".join(f"{name} {accuracy(model, source, 500):.3f}" for name, source in sampler.clean.items())
            report(
                f"step {step + 1}/{settings.steps} loss {loss.item():.3f} {time.monotonic() - started:.0f} s: {scores}"
            )
    return model.eval()


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, facts: Facts, limit: int | None = None) -> float:
    """Share of facts whose stated answer is the argmax over the vocabulary; `limit` takes an even sample."""
    stride = 1 if limit is None else max(1, len(facts.last) // limit)
    part = Facts(facts.tokens[::stride], facts.last[::stride])
    rows = torch.arange(len(part.last))
    return (fact_logits(model, part)[:, 0].argmax(-1) == part.tokens[rows, part.last + 1]).float().mean().item()


def save(model: LlamaForCausalLM, settings: Settings, folder: Path) -> None:
    """Write model, tokenizer and `training.json` (settings and the versions that made the weights)."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    # safetensors writes files that only their owner may read.
    (folder / "model.safetensors").chmod(0o644)
    build_tokenizer().save_pretrained(folder)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    record = {"settings": asdict(settings), "versions": versions, "machine": platform.machine()}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument(
        "--seed", type=int, default=Settings.seed, help=f"start and order (default {Settings.seed}, the shipped one)"
    )
    parser.add_argument("--steps", type=int, default=Settings.steps, help="optimizer steps")
    options = parser.parse_args(arguments)
    settings = Settings(seed=options.seed, steps=options.steps)
    model = train(settings, lambda line: print(line, flush=True))
    save(model, settings, options.out)


if __name__ == "__main__":
    main()
