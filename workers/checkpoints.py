"""Weights on disk: each stage's in a safetensors file of its own, under the names of the uncut model.

    snapshots/<step>/stage-0.safetensors    weights and buffers of the first stage
                     ...
                     manifest.json          written last: a folder without it is not complete

Nothing here is pickled or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stepahead.pipeline import Group, TrainingError, UsageError

from .wire import bytes_of

__all__ = ["complete_snapshot", "newest_snapshot", "read_snapshot", "save_stage", "weights_sha256"]

SNAPSHOTS, PARTIAL = "snapshots", "partial"
MANIFEST = "manifest.json"
DIGEST, BUFFER = "sha256:", "buffer-sha256:"


def save_stage(run: Path, group: Group, stage: int) -> None:
    """Write the group's weights and buffers into the snapshot that is being made in a run folder."""
    try:
        _save(run / SNAPSHOTS / PARTIAL, group, stage)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"the weights of stage {stage} cannot be saved in {run / SNAPSHOTS}: {error}") from error


def complete_snapshot(run: Path, stages: int, steps: int) -> str:
    """Turn what the stages wrote into the snapshot after `steps` steps, and return the digest of its weights."""
    folder = run / SNAPSHOTS / PARTIAL
    files = [f"stage-{stage}.safetensors" for stage in range(stages)]
    digests: dict[str, str] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as reader:
            digests |= {name: digest for name, digest in (reader.metadata() or {}).items() if name.startswith(DIGEST)}
    sha256 = _combine({name.removeprefix(DIGEST): digest for name, digest in digests.items()})
    manifest = {"steps": steps, "stages": files, "weights_sha256": sha256}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    folder.rename(folder.with_name(str(steps)))
    return sha256


def newest_snapshot(run: Path) -> Path:
    """Return the newest complete snapshot of a run folder."""
    complete = [path.parent for path in (run / SNAPSHOTS).glob(f"*/{MANIFEST}") if path.parent.name.isdigit()]
    if not complete:
        raise UsageError(f"{run} has no complete snapshot: there is no {SNAPSHOTS}/<step>/{MANIFEST} in it")
    return max(complete, key=lambda folder: int(folder.name))


def read_snapshot(snapshot: Path) -> dict[str, Tensor]:
    """Return the state dict of the uncut model that a snapshot holds, checked against its digest."""
    try:
        manifest: dict[str, Any] = json.loads((snapshot / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{snapshot / MANIFEST} cannot be read: {error}") from None
    state: dict[str, Tensor] = {}
    weights: dict[str, str] = {}
    for file in manifest["stages"]:
        try:
            with safe_open(snapshot / file, framework="pt") as reader:
                state |= {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118  it is no mapping
                digests = reader.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{snapshot / file} cannot be read: {error}") from error
        weights |= {key.removeprefix(DIGEST): digest for key, digest in digests.items() if key.startswith(DIGEST)}
        for key, digest in digests.items():
            name = key.removeprefix(BUFFER).removeprefix(DIGEST)
            if name not in state or _digest(state[name]) != digest:
                raise UsageError(f"{snapshot / file} is damaged: {name!r} is not what was saved")
    if _combine(weights) != manifest["weights_sha256"]:
        raise UsageError(f"{snapshot} is damaged: its files are not those of its {MANIFEST}")
    return state


def weights_sha256(weights: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Return one digest of all weights, the same however the model was cut."""
    return _combine({name: _digest(weight) for name, weight in weights})


def _save(folder: Path, group: Group, stage: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: _plain(value) for name, value in group.model_state().items() if isinstance(value, Tensor)}
    weights = {name for name, _ in group.named_weights()}
    digests = {(DIGEST if name in weights else BUFFER) + name: _digest(value) for name, value in state.items()}
    part, whole = folder / f".stage-{stage}", folder / f"stage-{stage}.safetensors"
    save_file(state, part, metadata=digests)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(whole)


def _combine(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
