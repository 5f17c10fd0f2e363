"""Single values as the text of a table."""

from __future__ import annotations


def percent(value: float | None, *, absent: str = "–") -> str:
    """A share in [0, 1] as percent with one decimal.

    Args:
        value: None or NaN where there is none.
        absent: shown in place of a missing value.

    Example:
        >>> percent(0.6549), percent(None)
        ('65.5', '–')
    """
    return absent if value is None or value != value else f"{100 * value:.1f}"


def setting_text(value: object) -> str:
    """A setting as it stands in a table: YAML's words for truth values, a dash for None.

    Example:
        >>> setting_text(True), setting_text(None), setting_text([256, 128])
        ('true', '–', '[256, 128]')
    """
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
