"""For the documentation site: `Example:` in a docstring is shown as code, as griffe shows `Examples:`."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Read both spellings as one."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the heading in the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
