"""Words of messages."""


def counted(n: int, noun: str) -> str:
    """Return a number and its noun, such as "1 path" or "2 paths"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def printable(text: str) -> str:
    """Return a text with line breaks, control characters and terminal sequences as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def duration(seconds: float) -> str:
    """Return a time in words, such as "2 h 05 min"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // (60 * 24)
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60:02} min"
