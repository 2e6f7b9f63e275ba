"""Weights of a run for the uncut model: one safetensors file that the user's own module loads with strict=True."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from stepahead.pipeline import UsageError
from stepahead.workers import newest_snapshot, read_snapshot

__all__ = ["export_weights"]


def export_weights(run: Path, file: Path) -> str:
    """Write the newest snapshot of a run folder as one file, and return a sentence about it."""
    if not run.is_dir():
        raise UsageError(f"there is no run folder {run}")
    snapshot = newest_snapshot(run)
    state = read_snapshot(snapshot)
    try:
        save_file(state, file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} cannot be written: {error}") from error
    values = sum(tensor.numel() for tensor in state.values())
    return f"{file}: {len(state)} tensors, {values:,} values, after {snapshot.name} steps"
