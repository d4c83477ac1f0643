"""What the help of every command ends with."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """Epilog of a command: its examples, one a line (typer joins lines that no blank line separates)."""
    return "\n\n".join(("[bold]Examples[/bold]", *(f"  $ {line}" for line in lines)))
