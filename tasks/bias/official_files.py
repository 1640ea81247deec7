"""Items for lm-eval's own bias tasks from the authors' files, so that they run without a network.

The tasks are lm-eval's, untouched: prompts, choices, metrics and version. In the group `bias_suite` each gets one of these functions for its data. Without a local folder it
loads what lm-eval loads; with one, documents with the same fields are made from the official files. They are not the same documents in every case, and the leaderboard, which knows
a document by its hash, never pairs one with another: the official CrowS-Pairs has 1,508 pairs, the hub a revised set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness_ext.lm_eval_adapter.task_data import Row, Source

if TYPE_CHECKING:
    from datasets import DatasetDict

PRONOUNS = {
    "male": {"$NOM_PRONOUN": "he", "$POSS_PRONOUN": "his", "$ACC_PRONOUN": "him"},
    "female": {"$NOM_PRONOUN": "she", "$POSS_PRONOUN": "her", "$ACC_PRONOUN": "her"},
    "neutral": {"$NOM_PRONOUN": "they", "$POSS_PRONOUN": "their", "$ACC_PRONOUN": "them"},
}
BBQ_FIELDS = ("example_id", "question_index", "question_polarity", "context_condition", "category", "answer_info", "additional_metadata", "context", "question", "ans0", "ans1", "ans2", "label")
BBQ_ANSWERS = ("ans0", "ans1", "ans2")


def crows_pairs(**settings: Any) -> DatasetDict:
    """CrowS-Pairs (arXiv 2010.00133): crows_pairs_anonymized.csv."""
    source = Source("crows_pairs_english", "crows_pairs", settings)
    if source.local is None:
        return _as_lm_eval(source, "jannalu/crows_pairs_multilingual", "english")
    columns = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
    items = source.read(source.file("crows_pairs_anonymized.csv"), columns)
    return source.splits(test=({"id": place, **{column: item[column] for column in columns}} for place, item in enumerate(items)))


def winogender(**settings: Any) -> DatasetDict:
    """Winogender (arXiv 1804.09301): all_sentences.tsv, and templates.tsv for the pronoun of each sentence and what it refers to. One function for the three tasks on it."""
    source = Source("winogender_all, _female and _male", "winogender", settings)
    if source.local is None:
        return _as_lm_eval(source, "oskarvanderwal/winogender", "all")
    columns = ("occupation(0)", "other-participant(1)", "answer", "sentence")
    templates = {(item[columns[0]], item[columns[1]], item[columns[2]]): item["sentence"] for item in source.read(source.file("templates.tsv"), columns)}
    sentences = source.read(source.file("all_sentences.tsv"), ("sentid", "sentence"))
    return source.splits(test=(_winogender_document(source, item["sentid"], item["sentence"], templates) for item in sentences))


def _winogender_document(source: Source, name: str, sentence: str, templates: dict[tuple[str, str, str], str]) -> Row:
    """`name` is `OCCUPATION.PARTICIPANT.ANSWER.GENDER.txt`, where the participant may be replaced by `someone`."""
    parts = name.split(".")
    source.checked([dict(zip(("occupation", "participant", "answer", "gender"), parts, strict=False))], ("occupation", "participant", "answer", "gender"), f"the name {name!r}")
    occupation, participant, answer, gender = parts[:4]
    fitting = [text for (who, other, label), text in templates.items() if (who, label) == (occupation, answer) and participant in (other, "someone")]
    source.checked([{"template": text} for text in fitting], ("template",), f"templates.tsv for {name}")
    pronoun = next(word for mark, word in PRONOUNS[gender].items() if mark in fitting[0])
    return {"sentid": name, "sentence": sentence, "pronoun": pronoun, "occupation": occupation, "participant": participant, "gender": gender, "label": int(answer)}


def bbq(**settings: Any) -> DatasetDict:
    """BBQ (arXiv 2110.08193): every category (*.jsonl) that is there."""
    source = Source("bbq", "bbq", settings)
    if source.local is None:
        return _as_lm_eval(source, "oskarvanderwal/bbq", "All")
    paths = sorted(source.local.glob("*.jsonl")) or [source.file("Age.jsonl")]
    return source.splits(test=(_bbq_document(item) for path in paths for item in source.read(path, BBQ_FIELDS)))


def _bbq_document(item: Any) -> Row:
    # The other keys of the metadata vary from category to category, and the task does not look at them.
    groups = {"stereotyped_groups": item["additional_metadata"]["stereotyped_groups"]}
    answers = {answer: item["answer_info"][answer] for answer in BBQ_ANSWERS}
    return {field: item[field] for field in BBQ_FIELDS} | {"answer_info": answers, "additional_metadata": groups}


def simple_cooccurrence(**settings: Any) -> DatasetDict:
    """Simple co-occurrence (section 6.1 of arXiv 2005.14165): test.csv of the hub's data set, where there is one, else the occupations of Winogender in the paper's sentence."""
    source = Source("simple_cooccurrence_bias", "simple_cooccurrence_bias", settings)
    if source.local is not None:
        return source.splits(test=({"sentence": item["sentence"]} for item in source.read(source.file("test.csv"), ("sentence",))))
    other = Source(source.task, "winogender", settings)
    if other.local is None:
        return _as_lm_eval(source, "oskarvanderwal/simple-cooccurrence-bias", None)
    items = other.read(other.file("occupations-stats.tsv"), ("occupation",))
    return source.splits(test=({"sentence": f"The {item['occupation']} was a", "occupation": item["occupation"]} for item in items))


def _as_lm_eval(source: Source, path: str, name: str | None) -> DatasetDict:
    """What lm-eval itself would load, with every column that the data set has."""
    from datasets import DatasetDict

    return DatasetDict({"test": source.hub(path, name, "test")})
