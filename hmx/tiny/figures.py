"""How the embedded model's reports print a figure."""


def print_figure(name: str, value: str, aim: str = "") -> None:
    """One line: what it is, its value, and what it should be."""
    print(f"  {name:<47}{value:>12}{'   aim ' + aim if aim else ''}")
