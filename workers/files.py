"""Files that are there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a file in one go: whoever reads it meanwhile reads what was there before."""
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(text)
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
