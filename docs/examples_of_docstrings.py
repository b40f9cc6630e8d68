"""For mkdocstrings: docstrings here end in ``Example:``, which griffe reads as a doctest in its plural alone."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Of a module, a class or a function that has just been read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
