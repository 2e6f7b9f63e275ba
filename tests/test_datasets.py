"""Data from a user's folder, and the bundled one."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepahead.launch import digits, minibatches, mnist, read_idx
from stepahead.launch.datasets import cifar10
from stepahead.pipeline import UsageError


def idx(values: list[int], *shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(values)


def write_mnist(folder: Path, *, labels: int = 3, side: int = 2) -> None:
    pixels = [20 * place % 256 for place in range(3 * side * side)]
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels, 3, side, side))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx([1, 2, 3][:labels], labels)))


def test_mnist_from_a_folder_gzipped_or_not(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    images, labels = mnist(tmp_path).train
    assert images.shape == (3, 1, 2, 2)
    assert images[0].flatten().tolist() == pytest.approx([0, 20 / 255, 40 / 255, 60 / 255])
    assert labels.tolist() == [1, 2, 3]


def test_mnist_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz in"):
        mnist(tmp_path)
    write_mnist(tmp_path, labels=2)
    with pytest.raises(UsageError, match="train has 3 images and 2 labels"):
        mnist(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not an idx file of unsigned bytes: it starts with nothing"),
        (b"PNG\x01aaaa", "it starts with 504e4701"),
        (bytes([0, 0, 13, 1]) + bytes(8), "is not an idx file of unsigned bytes"),
        (bytes([0, 0, 8, 3, 0]), "ends inside its header, after 5 bytes"),
        (idx([1, 2, 3], 4), r"says shape \[4\], 4 bytes, and has 3"),
        (idx([1, 2, 3], 2**31, 2**31), "and has 3"),
    ],
)
def test_files_that_are_no_idx(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=text):
        read_idx(path)


def test_a_broken_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    for content in (b"no gzip", gzip.compress(idx([1], 1))[:-6]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"file\.gz is not a whole gzip file"):
            read_idx(path)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3).flatmap(lambda shape: st.just(tuple(shape))))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...]) -> None:
    values = torch.arange(torch.Size(shape).numel()) % 256
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(idx(values.tolist(), *shape))
    assert torch.equal(read_idx(path), values.to(torch.uint8).reshape(shape))


def write_cifar(folder: Path, **contents: bytes) -> None:
    """Write six files of two images each: image i of file k is all i, 0 and k, and its label is k."""
    for file, name in enumerate([*[f"data_batch_{number}" for number in range(1, 6)], "test_batch"]):
        records = [bytes([file]) + bytes([row]) * 1024 + bytes(1024) + bytes([file]) * 1024 for row in (0, 255)]
        (folder / f"{name}.bin").write_bytes(contents.get(name, b"".join(records)))


def test_cifar10_from_a_folder(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    data = cifar10(tmp_path)
    images, labels = data.train
    assert images.shape == (10, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert images[3, :, 5, 7].tolist() == pytest.approx([1, 0, 1 / 255])
    assert data.test[1].tolist() == [5, 5]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "has 0 bytes, which is no number of records of 3073 bytes"),
        (bytes(3072), r"data_batch_2\.bin has 3072 bytes"),
        (bytes(3073) + bytes([10]) + bytes(3072), "record 1 has label 10; CIFAR-10's go from 0 to 9"),
    ],
)
def test_files_that_are_no_cifar10(tmp_path: Path, content: bytes, text: str) -> None:
    write_cifar(tmp_path, data_batch_2=content)
    with pytest.raises(UsageError, match=text):
        cifar10(tmp_path)


def test_a_folder_without_cifar10(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no data_batch_1\.bin in .*; CIFAR-10's binary version"):
        cifar10(tmp_path)


def test_the_bundled_digits() -> None:
    data = digits()
    assert len(data.train[0]) + len(data.test[0]) == 1797
    assert data.train[0].shape[1:] == (64,)
    assert 0 <= data.train[0].min() < data.train[0].max() <= 1
    assert sorted(set(data.test[1].tolist())) == list(range(10))


def test_minibatches_shuffle_every_epoch_and_lose_nothing() -> None:
    samples = torch.arange(10).float()
    batches = list(minibatches((samples, samples.long()), 4, epochs=2))
    assert [len(data) for data, _ in batches] == [4, 4, 2, 4, 4, 2]
    epochs = [torch.cat([data for data, _ in part]) for part in (batches[:3], batches[3:])]
    assert not torch.equal(epochs[0], epochs[1])
    assert all(torch.equal(epoch.sort().values, samples) for epoch in epochs)
    assert all(torch.equal(data.long(), labels) for data, labels in batches)
    again = next(minibatches((samples, samples.long()), 4))
    assert torch.equal(again[0], batches[0][0])
    assert not torch.equal(next(minibatches((samples, samples.long()), 4, seed=1))[0], again[0])
