"""Which model and which edit of it a run is of: the keys by which runs of the same model come together."""

from __future__ import annotations

import re

from leaderboard.readers.edited import PLAIN_RECIPE, Editedness
from leaderboard.readers.receipt import Receipt, shown
from leaderboard.readers.records import RunVariant
from leaderboard.readers.results import Environment
from leaderboard.readers.safe_json import clean, digest

_PLAIN_PATH = re.compile(r"^(?:\./+)+|/+$")


def receipt_variant(receipt: Receipt, known: Editedness) -> RunVariant:
    """The model and edit of a run with a receipt. An edit that only `known` tells of makes a variant of its own."""
    model, recipe = receipt.model, receipt.recipe
    texts = {
        "model_name": model.name,
        "recipe_name": known.recipe_name,
        "recipe_label": known.recipe_label,
        "pretrained": model.pretrained,
        "revision": model.revision,
        "identity": model.identity,
        "model_type": model.model_type,
        "dtype": model.dtype,
        "recipe_id": receipt.recipe_id,
        "recipe_summary": recipe.summary,
        "recipe_source": recipe.source,
        "control": recipe.control,
        "control_of": recipe.control_of,
        "digest_before": receipt.weights.digest_before,
        "digest_after": receipt.weights.digest_after,
    }
    variant_id = receipt_variant_id(receipt)
    return RunVariant(
        variant_id=variant_id if known.recipe_label == recipe.label else digest([variant_id, known.recipe_label]),
        model_key=_receipt_model_key(receipt),
        parameters=model.parameters,
        recipe_resolved=shown(recipe.resolved),
        **{name: value if value is None else clean(value) for name, value in texts.items()},  # type: ignore[arg-type]
    )


def receipt_variant_id(receipt: Receipt) -> str:
    """The id that a receipt gives its variant, or one made of what it says."""
    model = receipt.model
    made_up = digest(
        [
            _receipt_model_key(receipt),
            receipt.recipe_id or receipt.recipe.label,
            model.dtype,
            receipt.weights.digest_after,
        ]
    )
    return clean(receipt.variant_id or made_up)


def _receipt_model_key(receipt: Receipt) -> str:
    model = receipt.model
    return model_key(model.pretrained or model.name, model.revision, model.identity)


def plain_variant(environment: Environment) -> RunVariant:
    """The model of a results file, with the edit that the file tells of."""
    known = environment.editedness
    variant_id = plain_variant_id(environment)
    edit = [known.recipe_label, known.recipe_id, known.digest_after]
    return RunVariant(
        variant_id=digest([variant_id, *edit]) if known.edited else variant_id,
        model_key=_plain_model_key(environment),
        model_name=environment.model_name,
        recipe_name=known.recipe_name,
        recipe_label=known.recipe_label,
        pretrained=environment.pretrained,
        revision=environment.revision,
        identity=environment.model_hash,
        parameters=environment.parameters,
        dtype=environment.dtype,
        recipe_id=known.recipe_id,
        control=known.control,
        control_of=known.control_of,
        digest_after=known.digest_after,
    )


def plain_variant_id(environment: Environment) -> str:
    """The id of a results file's model, whatever is known of an edit."""
    return digest([_plain_model_key(environment), "plain", environment.dtype, environment.model_arguments])


def _plain_model_key(environment: Environment) -> str:
    name, part = environment.pretrained or environment.model_name, environment.subfolder
    return model_key(f"{name}/{part}" if part else name, environment.revision, environment.model_hash)


def model_key(name: str, revision: str | None, identity: str | None) -> str:
    """Of one folder however it is written: `./model/` is `model`."""
    return digest([_PLAIN_PATH.sub("", name) or name, revision or "main", identity or ""])[:32]


def samples_variant(name: str) -> RunVariant:
    """The variant of samples without a results file: of a model that is known by name alone."""
    key = model_key(name, None, None)
    return RunVariant(digest([key, PLAIN_RECIPE]), key, name, PLAIN_RECIPE, PLAIN_RECIPE)
