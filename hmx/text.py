"""Showing what a model wrote, which is data and may hold anything, and what grade it got."""


def one_line(text: str) -> str:
    """`text` on one line and without control characters, so that it can't steer a terminal.

    >>> one_line("I am\\n\\n  here \\x1b[31m")
    'I am here [31m'
    """
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def grade_text(grade: float | None) -> str:
    """A grade as people read it: whole numbers as such, expectations with two decimals.

    >>> [grade_text(grade) for grade in (7, 6.4142, 10.0, None)]
    ['7', '6.41', '10', '?']
    """
    return "?" if grade is None else f"{round(grade, 2):g}"
