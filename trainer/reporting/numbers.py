"""Writes names, numbers and sizes for people."""


def short(value: float) -> str:
    """Returns a number with four significant digits, or whole from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def text(value: object) -> str:
    """Returns a value as a table shows it: a number with commas, a dash for None."""
    if isinstance(value, float):
        return short(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "–" if value is None else str(value)


def gib(num_bytes: float | None) -> str:
    """Returns a number of bytes in GiB."""
    return "–" if num_bytes is None else f"{num_bytes / 2**30:,.2f}"


def label(name: str) -> str:
    """Returns "Token perplexity" for "token_perplexity"."""
    return name[:1].upper() + name[1:].replace("_", " ")
