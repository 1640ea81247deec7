"""Results of other harnesses, read by their documented formats: lighteval's and Inspect's. None of them is imported.

A format is one file with a class like `FileFormat`, named in `formats.FORMATS`.
"""
