"""Which matrices were edited, how far down in rank, and what became of the scores: every receipt's matrices, joined
with the board's cells.

Notable choices:
- A place is a layer and a kind of matrix (its role, or its name where it has none). The heads or experts that a receipt
  lists one by one are one place of a run: ranks are summed; energy kept and relative error are those of the part that
  lost most.
- A matrix that several steps edited counts once: its rank before the first of them, and what the last of them left.
- The score belongs to a run, not to a matrix. A run that edits many matrices says little about any of them, so a view
  can be narrowed to runs that edit few, and a place shows every run by itself or counts of verdicts, never a mean.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leaderboard.board.cell import COMPARED, Cell
from leaderboard.compare.collapse import COLLAPSED
from leaderboard.store.database import Store

# Of a run: each matrix (or part) once, then each place once. `arg_max(value, position)` is the last step's value.
_PLACES = """
WITH parts AS (
  SELECT run_id, layer, coalesce(role, regexp_replace(name, '\\.\\d+\\.', '.*.', 'g')) AS matrix, name, part,
  any_value(shape) AS shape, string_agg(DISTINCT method, ', ' ORDER BY method) AS methods,
    arg_min(rank_before, position) AS rank_before, arg_max(rank_after, position) AS rank_after,
    min(energy_kept) AS energy_kept, max(relative_error) AS relative_error
  FROM receipts GROUP BY ALL
), sizes AS (SELECT run_id, count(DISTINCT name) AS edited FROM receipts GROUP BY run_id)
SELECT p.run_id, v.model_key, v.model_name, v.recipe_label AS recipe, v.control IS NOT NULL AS control, p.layer,
    p.matrix, any_value(p.shape) AS shape, count(*) AS parts, s.edited, min(p.methods) AS methods,
  CASE WHEN count(p.rank_before) = count(*) THEN try_cast(sum(p.rank_before) AS BIGINT) END AS rank_before,
  CASE WHEN count(p.rank_after) = count(*) THEN try_cast(sum(p.rank_after) AS BIGINT) END AS rank_after,
  min(p.energy_kept) AS energy_kept, max(p.relative_error) AS relative_error
FROM parts p JOIN sizes s USING (run_id) JOIN runs r USING (run_id) JOIN variants v USING (variant_id)
GROUP BY p.run_id, v.model_key, v.model_name, v.recipe_label, v.control, p.layer, p.matrix, s.edited
ORDER BY v.model_name, v.recipe_label, p.run_id, p.layer NULLS LAST, p.matrix
"""
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LayerEdit:
    """What one run did to one place. `parts`: how many heads, experts or matrices it is made of; `edited`: how many
    matrices the run edited in all. `layer` is None outside the layers.
    """

    run_id: str
    model_key: str
    model_name: str
    recipe: str
    control: bool
    layer: int | None
    matrix: str
    shape: str | None
    parts: int
    edited: int
    methods: str | None
    rank_before: int | None
    rank_after: int | None
    energy_kept: float | None
    relative_error: float | None

    @property
    def rank_kept(self) -> float | None:
        """The share of the rank that is left."""
        return None if self.rank_after is None or not self.rank_before else self.rank_after / self.rank_before


@dataclass(frozen=True)
class LayerPlace:
    """One layer and matrix over several runs: how many edited it, the span of the rank they kept, and their verdicts on
    one task (runs without one left out of `verdicts`).
    """

    layer: int | None
    matrix: str
    runs: int
    least_kept: float | None
    most_kept: float | None
    verdicts: Counter[str]

    @property
    def harmful(self) -> int:
        """Runs that are worse or collapsed."""
        return self.verdicts["worse"] + self.verdicts[COLLAPSED]

    @property
    def balance(self) -> float | None:
        """Better runs less harmful ones, as a share of those with a verdict: from -1 to 1, None without any."""
        counted = sum(self.verdicts[word] for word in COMPARED)
        return (self.verdicts["better"] - self.harmful) / counted if counted else None


def edits(store: Store) -> list[LayerEdit]:
    """Every place of every run that has a receipt with matrices, complete or failed."""
    return [LayerEdit(**row) for row in store.rows(_PLACES)]


def verdicts(cells: Iterable[Cell], task: str) -> dict[str, Cell]:
    """run_id -> its cell on a task."""
    return {cell.run_id: cell for cell in cells if cell.task == task}


def places(found: Iterable[LayerEdit], by_run: dict[str, Cell]) -> list[LayerPlace]:
    """The edits gathered by place, in the order of a model: by layer, then attention before MLP."""
    gathered: dict[tuple[int | None, str], list[LayerEdit]] = defaultdict(list)
    for edit in found:
        gathered[edit.layer, edit.matrix].append(edit)
    made = []
    for (layer, matrix), group in gathered.items():
        kept = [edit.rank_kept for edit in group if edit.rank_kept is not None]
        words = Counter(by_run[edit.run_id].verdict for edit in group if edit.run_id in by_run)
        made.append(LayerPlace(layer, matrix, len(group), min(kept, default=None), max(kept, default=None), words))
    return sorted(made, key=lambda place: (place.layer is None, place.layer or 0, matrix_order(place.matrix)))


def matrix_order(matrix: str) -> tuple[int, str]:
    """Known roles in the order of a layer, others after them by name."""
    return (_ORDER.index(matrix) if matrix in _ORDER else len(_ORDER)), matrix


def matrices_of(found: Sequence[LayerEdit]) -> list[str]:
    """The kinds of matrices of some edits, in that order."""
    return sorted({edit.matrix for edit in found}, key=matrix_order)
