"""The board of a model, or some runs compared, as one file: HTML for a browser without a network, Markdown for a pull
request or a model card.
"""
