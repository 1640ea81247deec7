"""The mathematics: one pure, typed function of tensors per method, one family a file.

What another package needs to add a method is here; `harness_ext.methods.registry` says how it is called.
"""

from harness_ext.linalg.edits import AnyEdit, DenseEdit, Edit, MadeFrom, Svd, Truncate
from harness_ext.methods.budget import Keep
from harness_ext.methods.registry import Method, Parameter, call, method, registered_methods

__all__ = [
    "AnyEdit",
    "DenseEdit",
    "Edit",
    "Keep",
    "MadeFrom",
    "Method",
    "Parameter",
    "Svd",
    "Truncate",
    "call",
    "method",
    "registered_methods",
]
