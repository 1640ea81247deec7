"""The page's scripts, one a view; Streamlit runs them, nothing imports them."""
