"""The page's entry: settings and navigation. Streamlit runs this script anew for every view.

The tab's icon is drawn here, because Streamlit would fetch a named one from a server elsewhere.
"""

from __future__ import annotations

import streamlit as st
from PIL import Image

from leaderboard.app import url_state
from leaderboard.app.colours import is_dark
from leaderboard.app.menu import HOME, menu


def icon() -> Image.Image:
    """Three bars in the colours of the verdicts, 32 x 32."""
    picture = Image.new("RGB", (32, 32), "white")
    for left, top, colour in ((3, 16, "#388bfd"), (12, 4, "#2da44e"), (21, 21, "#bb8009")):
        picture.paste(colour, (left, top, left + 7, 29))
    return picture


st.set_page_config(page_icon=icon(), layout="wide")
url_state.carry()
if is_dark():  # the names in a box of several are white on the light blue of a dark page, too faint to read
    st.html("<style>[data-testid='stMultiSelect'] span[title] { color: #0b111a }</style>")
st.navigation(
    [
        st.Page(
            page.script,
            title=page.title,
            icon=page.icon,
            default=page == HOME,
            url_path=None if page == HOME else page.name,
        )
        for page in menu()
    ],
    position="top",
).run()
