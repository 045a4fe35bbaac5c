"""Words of messages."""


def counted(n: int, noun: str) -> str:
    """Return a number and its noun, such as "1 path" or "2 paths"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
