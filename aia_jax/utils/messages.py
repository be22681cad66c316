"""Numbers of things as a message tells them."""


def counted(number: int, noun: str) -> str:
    """`1 label`, `2,000 labels`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
