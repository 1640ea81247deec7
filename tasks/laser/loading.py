"""The data sets of LASER (arXiv 2312.13558, code pratyushasharma/laser), with the prompts of its released code.

Choices. What the paper scores is the test split here. A training split exists where the data set has one of its own, and never holds a scored item; the others are
calibrated with `calibration.split=test`, which takes documents out of the score. Prompts and choices are plain fields, because lm-eval would compile a template anew for
each of 65,000 documents. Differences from the released code: HotpotQA's answers are not filtered by the length that Llama's tokenizer gives them (14,810 items instead of
14,618).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.task_data import TRAINING_LIMIT, Row, Source

if TYPE_CHECKING:
    from datasets import DatasetDict

COUNTERFACT_URL = "https://rome.baulab.info/data/dsets/counterfact.json"
FEVER_URL = "https://fever.ai/download/fever/{}.jsonl"
FEVER_LABELS = {"REFUTES": 0, "SUPPORTS": 1}
PROFESSIONS = ("journalist", "poet", "composer", "model", "teacher", "architect", "painter", "professor")
# The data set's numbers for them.
PROFESSION_NUMBERS = {"architect": 1, "composer": 5, "journalist": 11, "model": 12, "painter": 14, "poet": 20, "professor": 21, "teacher": 26}

RELATIONS = ("entailment", "non-entailment")
# The numbers of two labels; `index` refuses others.
BINARY = (0, 1)

Items = Iterable[Mapping[str, Any]]


def ended(text: str, mark: str) -> str:
    """The text, stripped, with a mark at its end unless it ends in a full stop or a question mark."""
    stripped = text.strip()
    return stripped if stripped.endswith((".", "?")) else stripped + mark


# CounterFact


def counterfact(**settings: Any) -> DatasetDict:
    """Each fact of CounterFact in its own words and in two paraphrases: 21,919 facts, 65,757 documents."""
    source = Source("counterfact", "counterfact", settings)
    path = source.published(COUNTERFACT_URL) if source.local is None else source.file("counterfact.json")
    return source.splits(test=counterfact_documents(source, source.read(path, ("case_id", "requested_rewrite", "paraphrase_prompts"), ending=".json")))


def counterfact_documents(source: Source, items: Items) -> Iterator[Row]:
    """Prompt and answer of every wording; the answer carries its own space, since lm-eval puts none into loglikelihood requests."""
    for item in items:
        rewrite = item["requested_rewrite"]
        source.checked([rewrite], ("prompt", "subject", "target_true"), f"requested_rewrite of case {item['case_id']}")
        answer = rewrite["target_true"]["str"]
        for prompt in (rewrite["prompt"].format(rewrite["subject"]), *item["paraphrase_prompts"]):
            yield {"case_id": item["case_id"], "prompt": prompt, "answer": answer, "target": f" {answer}"}


# HotpotQA, without its paragraphs


def hotpotqa(**settings: Any) -> DatasetDict:
    """The validation split and as many questions from the start of the training split, as in the paper; the training questions after them are for calibration."""
    source = Source("hotpotqa_closed", "hotpotqa", settings)
    if source.local is None:
        train, validation = (source.hub("hotpotqa/hotpot_qa", "fullwiki", split, ("question", "answer")) for split in ("train", "validation"))
    else:
        train, validation = (source.read(source.file(name), ("question", "answer")) for name in ("hotpot_train_v1.1.json", "hotpot_dev_fullwiki_v1.json"))
    size = len(validation)
    scored = chain((train[place] for place in range(min(size, len(train)))), validation)
    calibration = (train[place] for place in range(size, min(len(train), size + TRAINING_LIMIT)))
    documents = {"test": map(hotpotqa_document, scored)}
    return source.splits(**documents, **({"train": map(hotpotqa_document, calibration)} if len(train) > size else {}))


def hotpotqa_document(item: Mapping[str, Any]) -> Row:
    """A question without its paragraphs."""
    return {"prompt": f"{ended(item['question'], '?')} The answer is", "answer": item["answer"].strip()}


# FEVER


def fever(**settings: Any) -> DatasetDict:
    """Claims that are supported or refuted, from the paper's development and test files together; claims with both labels are left out, repeated ones counted once."""
    source = Source("fever_claims", "fever", settings)

    def claims(name: str) -> dict[str, int]:
        path = source.published(FEVER_URL.format(name)) if source.local is None else source.file(f"{name}.jsonl")
        return consistent_claims(source.read(path, ("claim", "label"), ending=".jsonl"))

    scored = {**claims("paper_dev"), **claims("paper_test")}
    training = {claim: label for claim, label in claims("train").items() if claim not in scored}
    first = list(training.items())[:TRAINING_LIMIT]
    return source.splits(test=(fever_document(*item) for item in scored.items()), train=(fever_document(*item) for item in first))


def consistent_claims(items: Items) -> dict[str, int]:
    """Claim -> 1 (true) or 0 (false), in the order of the file, where all its items agree."""
    labels: dict[str, set[str]] = {}
    for item in items:
        if item["label"] in FEVER_LABELS:
            labels.setdefault(item["claim"], set()).add(item["label"])
    return {claim: FEVER_LABELS[label] for claim, (label, *others) in labels.items() if not others}


def fever_document(claim: str, label: int) -> Row:
    """A claim with LASER's question; the first `is` has no question mark after it in the released code either."""
    return {"prompt": f"Consider the following claim: {ended(claim, '.')} Is this claim true or false. The claim is", "label": label}


# Bias in Bios


def bios_gender(**settings: Any) -> DatasetDict:
    """Whether a biography is of a man (0) or a woman (1): prediction accuracy, not a measure of bias."""
    return _bios(Source("bios_gender", "bias_in_bios", settings), lambda items: map(bios_gender_document, items))


def bios_profession(**settings: Any) -> DatasetDict:
    """Which of the eight professions of one token a biography is about."""
    numbers = {PROFESSION_NUMBERS[name]: PROFESSIONS.index(name) for name in PROFESSIONS}
    source = Source("bios_profession", "bias_in_bios", settings)
    return _bios(source, lambda items: (bios_profession_document(item, numbers[int(item["profession"])]) for item in items if int(item["profession"]) in numbers))


def _bios(source: Source, documents: Any) -> DatasetDict:
    columns = ("hard_text", "profession", "gender")

    def items(split: str) -> Any:
        if source.local is None:
            return source.hub("LabHC/bias_in_bios", None, split, columns)
        return source.read(source.file(f"{split}.parquet", f"{split}.jsonl", f"{split}.csv"), columns)

    training = items("train")
    first = (training[place] for place in range(min(TRAINING_LIMIT, len(training))))
    return source.splits(test=documents(items("dev")), train=documents(first))


def bios_gender_document(item: Mapping[str, Any]) -> Row:
    """A biography and LASER's question about gender."""
    return {"prompt": f"Consider the following text: {ended(item['hard_text'], '.')} Is the person in this text a male or female? The gender of this person is", "label": BINARY.index(int(item["gender"]))}


def bios_profession_document(item: Mapping[str, Any], label: int) -> Row:
    """A biography and LASER's question about the profession."""
    text = ended(item["hard_text"], ".")
    return {"prompt": f"Consider the following text: {text} What is the profession of the person in this text? The profession of this person is", "label": label}


# TruthfulQA


def truthfulqa(**settings: Any) -> DatasetDict:
    """Every answer that TruthfulQA lists for a question (mc2), as a statement to be called true or false: 5,882 of 817 questions."""
    source = Source("truthfulqa_claims", "truthfulqa", settings)
    columns = ("question", "mc2_targets")
    items: Items = source.hub("truthfulqa/truthful_qa", "multiple_choice", "validation", columns) if source.local is None else source.read(source.file("mc_task.json"), columns)
    return source.splits(test=truthfulqa_documents(source, items))


def truthfulqa_documents(source: Source, items: Items) -> Iterator[Row]:
    """One document an answer; the authors' file maps answers to labels, the hub has two lists."""
    for item in items:
        targets = item["mc2_targets"]
        if "choices" in targets and isinstance(targets["choices"], list):
            source.checked([targets], ("choices", "labels"), "mc2_targets")
            answers = zip(targets["choices"], targets["labels"], strict=True)
        else:
            answers = iter(targets.items())
        for answer, label in answers:
            statement = f"{item['question']} {answer}"
            # The released code has no space before this question.
            prompt = f"{statement if statement.endswith('.') else statement + '.'}Is this statement true or false? This statement is"
            yield {"question": item["question"], "prompt": prompt, "label": BINARY.index(int(label))}


# BIG-bench


def epistemic_reasoning(**settings: Any) -> DatasetDict:
    """Whether a premise about beliefs entails a hypothesis: all 2,000 items, which BIG-bench does not divide."""
    source = Source("epistemic_reasoning", "bigbench/epistemic_reasoning", settings)
    return source.splits(test=(epistemic_document(source, prompt, targets) for prompt, targets in _bigbench(source, "epistemic_reasoning")))


def epistemic_document(source: Source, prompt: str, targets: list[str]) -> Row:
    """A premise and a hypothesis, and the place of their relation among the two there are. Raises UserError for another relation."""
    if len(targets) != 1 or targets[0] not in RELATIONS:
        raise UserError(f"task {source.task}: an item has the answer {targets!r}, where one of {', '.join(RELATIONS)} was wanted; provide the official file, unchanged")
    return {"prompt": prompt, "label": RELATIONS.index(targets[0])}


def wikidata_qa(**settings: Any) -> DatasetDict:
    """Facts of Wikidata as sentences to be completed; as in the paper, only those with one right answer: 20,321."""
    source = Source("wikidata_qa", "bigbench/qa_wikidata", settings)
    return source.splits(test=({"prompt": prompt.strip(), "answer": targets[0].strip()} for prompt, targets in _bigbench(source, "qa_wikidata") if len(targets) == 1))


def _bigbench(source: Source, name: str) -> Iterator[tuple[str, list[str]]]:
    """Prompt and right answers of every item: from BIG-bench's task.json, or from the hub in the order in which LASER reads it."""
    if source.local is None:
        for split in ("validation", "train"):
            for item in source.hub("tasksource/bigbench", name, split, ("inputs", "targets")):
                yield item["inputs"], item["targets"]
        return
    path = source.file("task.json")
    task = source.checked([source.parse(path)], ("examples",), path)[0]
    before, after = task.get("example_input_prefix", "\nQ: "), task.get("example_output_prefix", "\nA: ")
    for item in source.checked(task["examples"], ("input",), path):
        yield f"{task.get('task_prefix', '')}{before}{item['input']}{after}".strip(), bigbench_targets(source, item)


def bigbench_targets(source: Source, item: Mapping[str, Any]) -> list[str]:
    """An item's right answers: `target`, one or several, or the choices with the highest score."""
    if "target" in item:
        return [item["target"]] if isinstance(item["target"], str) else list(item["target"])
    scores = source.checked([item], ("target_scores",), "the item")[0]["target_scores"]
    return [choice for choice, score in scores.items() if score == max(scores.values())]
