"""The shape of the repository, which packaging and people rely on."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ["pipeline", "workers", "launch"]


def modules(package: str) -> list[ModuleType]:
    names = [path.stem for path in sorted((ROOT / package).glob("*.py")) if path.stem != "__init__"]
    return [importlib.import_module(f"stepahead.{package}.{name}") for name in names]


def test_the_folders_are_the_packages() -> None:
    folders = sorted(path.parent.name for path in ROOT.glob("*/py.typed"))
    assert folders == sorted(PACKAGES)
    settings = PYPROJECT["tool"]["setuptools"]
    assert settings["package-dir"] == {f"stepahead.{name}": name for name in PACKAGES}
    assert settings["packages"] == [f"stepahead.{name}" for name in PACKAGES]
    assert all(settings["package-data"][f"stepahead.{name}"] for name in PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_flat(package: str) -> None:
    """setuptools finds no folders below a renamed one."""
    assert [path for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_true_and_complete(package: str) -> None:
    for module in [importlib.import_module(f"stepahead.{package}"), *modules(package)]:
        names: list[str] = list(getattr(module, "__all__", []))
        assert all(hasattr(module, name) for name in names), module.__name__
        assert len(set(names)) == len(names), module.__name__
    exported = importlib.import_module(f"stepahead.{package}")
    there = vars(exported) | dict.fromkeys(vars(exported).get("_HOMES", ()))  # some are imported when asked for
    public = {name for name, value in there.items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert public - {"TYPE_CHECKING", "Any", "annotations"} == set(exported.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    for module in modules(package):
        assert module.__doc__ is not None, module.__name__
    assert all((module.__doc__ or "").split("\n")[0].endswith((".", ":")) for module in modules(package))


def test_no_module_has_a_second_name() -> None:
    """From the repo's root `import pipeline` would work, and give every class a twin."""
    for package in PACKAGES:
        modules(package)
        assert package not in sys.modules


def test_constraints_name_what_is_needed() -> None:
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    needed = PYPROJECT["project"]["dependencies"] + [
        requirement
        for name, extra in PYPROJECT["project"]["optional-dependencies"].items()
        if name != "gpu"
        for requirement in extra
    ]
    names = {requirement.split(">")[0].split("[")[0] for requirement in needed}
    assert names <= pinned
