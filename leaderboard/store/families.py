"""Names of models: what each is called in a list, and which one a name in a link means.

A name stands for a family: every model that was called so, which differ in their weights or commit. A link that named
one model when there was only one goes on leading to the newest of the family.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from leaderboard.store.database import Store
from leaderboard.store.naming import short_identity


class ModelName(NamedTuple):
    """A model in lists. name: as its runs call it; identity: of its weights or commit, shortened to what differs;
    shown: unlike every other's, and short: of a path the last part, with the identity where two are called alike.
    """

    model_key: str
    name: str
    identity: str
    shown: str

    @property
    def with_identity(self) -> str:
        """The name by which a link means this one alone."""
        return f"{last_part(self.name)} ({self.identity})"


class Meant(NamedTuple):
    """What a name means: the model, None where it means none, and the others of its family, the newest first."""

    model: ModelName | None
    others: Sequence[ModelName] = ()


def families(store: Store) -> list[ModelName]:
    """Every model of a store, the one whose run was started last first."""
    by_age = "ORDER BY started NULLS LAST, coalesce(former_id, run_id), run_id"
    rows = store.connection.execute(
        f"SELECT model_key, last(model_name {by_age}), last(coalesce(nullif(identity, ''), model_key) {by_age}),"
        " max(started) AS newest FROM runs JOIN variants USING (variant_id) GROUP BY model_key ORDER BY newest DESC"
        " NULLS LAST, model_key"
    ).fetchall()
    return told_apart([(key, name, short_identity(identity)) for key, name, identity, _ in rows])


def shown_names(store: Store) -> dict[str, str]:
    """model_key -> the name shown, of every model of a store."""
    return {model.model_key: model.shown for model in families(store)}


def told_apart(models: Sequence[tuple[str, str, str]]) -> list[ModelName]:
    """Models (key, name, identity) with the names they are shown by, in the same order."""
    same = Counter(name for _, name, _ in models)
    names_of_part = Counter(last_part(name) for name in same)
    shown = []
    for key, name, identity in models:
        part = last_part(name)
        short = part if names_of_part[part] == 1 else name
        shown.append(ModelName(key, name, identity, short if same[name] == 1 else f"{short} ({identity})"))
    return shown


def meant(text: str, models: Sequence[ModelName]) -> Meant:
    """The model that a link or a person means. models: the newest first."""
    for same in (
        lambda one: text in (one.shown, one.model_key),
        lambda one: text in (one.with_identity, f"{one.name} ({one.identity})"),
    ):
        found = [one for one in models if same(one)]
        if found:
            return Meant(found[0])
    family = [one for one in models if one.name == text] or [one for one in models if last_part(one.name) == text]
    return Meant(family[0], family[1:]) if family else Meant(None)


def last_part(name: str) -> str:
    """Of a path on a disk its last part; any other name, such as `organisation/model`, whole."""
    if not name.startswith(("/", "./", "../", "~")) and name[1:3] not in (":\\", ":/") and name.count("/") < 2:
        return name
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name
