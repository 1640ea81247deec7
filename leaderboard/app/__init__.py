"""The page. `main.py` is what Streamlit runs; `views/` holds one script a page.

Everything that comes from models, recipes or results files is shown as plain text, code or table cells, never as
markdown or HTML: it may have been written by anybody.
"""
