"""Showing what a model wrote: it is data, and may hold anything."""


def one_line(text: str) -> str:
    """`text` on one line and without control characters, so that it can't steer a terminal.

    >>> one_line("I am\\n\\n  here \\x1b[31m")
    'I am here [31m'
    """
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
