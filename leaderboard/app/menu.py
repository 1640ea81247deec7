"""The pages, in the order of the menu. A page is a script in `views/`; this list is the only place that names them
all.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FOLDER = "views"


class Page(NamedTuple):
    """One entry of the menu. `name` is the script without its ending and the last part of the URL; the first page has
    none.
    """

    name: str
    title: str
    icon: str

    @property
    def script(self) -> str:
        """The script's path, as `st.switch_page` and `st.page_link` want it."""
        return f"{FOLDER}/{self.name}.py"


HOME = Page("models", "Models", ":material/home:")
BOARD = Page("board", "Leaderboard", ":material/leaderboard:")
COMPARE = Page("compare", "Compare", ":material/compare_arrows:")
FLIPS = Page("flips", "Flips", ":material/swap_vert:")
SIZE = Page("size", "Size and score", ":material/scatter_plot:")
HISTORY = Page("history", "History", ":material/timeline:")
ACROSS = Page("across", "Across models", ":material/grid_on:")
LAYERS = Page("layers", "Layers", ":material/layers:")
CLAIMS = Page("claims", "Claims", ":material/fact_check:")
SWEEPS = Page("sweeps", "Sweeps", ":material/dynamic_feed:")
RUN = Page("run", "Run", ":material/receipt_long:")
_MENU = (HOME, BOARD, COMPARE, FLIPS, SIZE, HISTORY, ACROSS, LAYERS, CLAIMS, SWEEPS, RUN)


def menu() -> list[Page]:
    """The pages whose script is there."""
    return [page for page in _MENU if (Path(__file__).parent / page.script).is_file()]
