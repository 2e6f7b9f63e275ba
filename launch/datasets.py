"""Data for the demo, the examples and the benchmarks: bundled, or read from a user's folder in its standard format."""

from __future__ import annotations

import gzip
import importlib.util
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stepahead.pipeline import UsageError, seed_for

__all__ = ["Dataset", "cifar10", "digits", "minibatches", "mnist", "read_idx"]

IDX_UNSIGNED_BYTE = 0x08
CIFAR_SHAPE = (3, 32, 32)
CIFAR_CLASSES = 10


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples with labels, for training and for testing."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits() -> Dataset:
    """Return scikit-learn's handwritten digits: 1,797 real images of 8x8, a fifth of them for testing."""
    rows = torch.tensor(_digits_table())
    images, labels = rows[:, :-1] / 16, rows[:, -1].long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return Dataset((images[train], labels[train]), (images[test], labels[test]))


def mnist(folder: Path) -> Dataset:
    """Return MNIST, or a set in its format, from a folder with the four idx files, gzipped or not; values in [0, 1]."""
    parts: list[tuple[Tensor, Tensor]] = []
    for prefix in ("train", "t10k"):
        images = read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte"))
        if len(images) != len(labels):
            raise UsageError(f"{folder}: {prefix} has {len(images)} images and {len(labels)} labels")
        parts.append((images.unsqueeze(1).float() / 255, labels.long()))
    return Dataset(parts[0], parts[1])


def read_idx(path: Path) -> Tensor:
    """Return the tensor in an idx file of unsigned bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole gzip file: {error}") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_UNSIGNED_BYTE]):
        raise UsageError(
            f"{path} is not an idx file of unsigned bytes: it starts with {content[:4].hex() or 'nothing'}"
        )
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise UsageError(f"{path} ends inside its header, after {len(content)} bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise UsageError(f"{path} says shape {list(shape)}, {math.prod(shape)} bytes, and has {len(content) - header}")
    values = bytearray(content[header:])
    return (
        torch.frombuffer(values, dtype=torch.uint8).reshape(shape) if values else torch.empty(shape, dtype=torch.uint8)
    )


def cifar10(folder: Path) -> Dataset:
    """Return CIFAR-10 from a folder with its binary files, data_batch_1.bin .. and test_batch.bin; values in [0, 1]."""
    parts = [_read_cifar(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    images, labels = zip(*parts, strict=True)
    return Dataset((torch.cat(images), torch.cat(labels)), _read_cifar(folder / "test_batch.bin"))


def _read_cifar(path: Path) -> tuple[Tensor, Tensor]:
    """Return images and labels; a record is one byte for the label, then the planes for red, green and blue."""
    if not path.is_file():
        raise UsageError(f"there is no {path.name} in {path.parent}; CIFAR-10's binary version is the one that has it")
    content, record = bytearray(path.read_bytes()), 1 + math.prod(CIFAR_SHAPE)
    if not content or len(content) % record:
        raise UsageError(f"{path} has {len(content)} bytes, which is no number of records of {record} bytes")
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, record)
    labels = records[:, 0].long()
    if labels.max() >= CIFAR_CLASSES:
        wrong = int((labels >= CIFAR_CLASSES).nonzero()[0])
        raise UsageError(
            f"{path}: record {wrong} has label {labels[wrong]}; CIFAR-10's go from 0 to {CIFAR_CLASSES - 1}"
        )
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE).float() / 255, labels


def minibatches(
    data: tuple[Tensor, Tensor], size: int, *, seed: int = 0, epochs: int | None = None, whole: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches, epoch after epoch, without end if none is given.

    The last of an epoch may be shorter; if it is to be `whole`, it is filled up with the epoch's first samples.
    """
    samples, labels = data
    epoch = 0
    while epochs is None or epoch < epochs:
        generator = torch.Generator().manual_seed(seed_for(seed, "epoch", epoch))
        order = torch.randperm(len(samples), generator=generator)
        if whole:
            order = torch.cat([order, order[: -len(order) % size]])
        for rows in order.split(size):
            yield samples[rows], labels[rows]
        epoch += 1


def _digits_table() -> list[list[float]]:
    """Read scikit-learn's file of the digits; to import scikit-learn for it would take a second or two."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.submodule_search_locations is None:
        raise UsageError("the digits come with scikit-learn; pip install 'stepahead[data]'")
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    with gzip.open(file, "rt") as lines:
        return [[float(value) for value in line.split(",")] for line in lines]


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise UsageError(f"there is no {name} or {name}.gz in {folder}")
