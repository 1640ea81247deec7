"""The page's entry: settings and navigation. Streamlit runs this script anew for every view.

The tab's icon is drawn here, because Streamlit would fetch a named one from a server elsewhere.
"""

from __future__ import annotations

import numpy as np
import streamlit as st


def icon() -> np.ndarray:
    """Three bars, `[32, 32, 3]`, in the colours of the verdicts."""
    picture = np.full((32, 32, 3), 255, dtype=np.uint8)
    for left, top, colour in ((3, 16, (56, 139, 253)), (12, 4, (45, 164, 78)), (21, 21, (187, 128, 9))):
        picture[top:29, left : left + 7] = colour
    return picture


st.set_page_config(page_title="Leaderboard", page_icon=icon(), layout="wide")
st.navigation(
    [
        st.Page("app_pages/board.py", title="Leaderboard", icon=":material/leaderboard:", default=True),
        st.Page("app_pages/run.py", title="Run", icon=":material/receipt_long:", url_path="run"),
    ],
    position="top",
).run()
