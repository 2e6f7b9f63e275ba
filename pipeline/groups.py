"""Layers and groups: a user's model as a chain of named layers, and the groups of layers that stages run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .cuts import Cut, cut_at, cut_by_count
from .errors import CutError
from .randomness import keyed

__all__ = ["Group", "Layer", "Model", "build_groups", "cut_model", "layers_of"]

LayerSource = nn.Module | Callable[[], nn.Module]
Model = nn.Module | Sequence[LayerSource]
"""What a user brings: an `nn.Sequential`, a list of layers, or a list of functions that each make a layer."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model: built already, or to be built by whoever runs it."""

    name: str
    index: int
    source: LayerSource

    def build(self, seed: int) -> nn.Module:
        """Return the layer; one that is built here draws its weights from a stream of its own."""
        if isinstance(self.source, nn.Module):
            return self.source
        with keyed(seed, "layer", self.index):
            module: object = self.source()
        if not isinstance(module, nn.Module):
            raise CutError(f"the factory of layer {self.name!r} made a {type(module).__name__}, not a module")
        return module


class Group(nn.Module):
    """Consecutive layers of a model: what one stage runs."""

    def __init__(self, names: Sequence[str], layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.layers = nn.ModuleList(layers)
        self._copies_input = _works_in_place(self.layers[0])

    @property
    def title(self) -> str:
        """The first and the last layer's name, for messages to people."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]}..{self.names[-1]}"

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters by the names that they have in the uncut model."""
        for name, layer in zip(self.names, self.layers, strict=True):
            yield from layer.named_parameters(prefix=name)

    def named_states(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers by the names that they have in the uncut model."""
        for name, layer in zip(self.names, self.layers, strict=True):
            yield from layer.named_buffers(prefix=name)

    def forward(self, h: Tensor) -> Tensor:
        if self._copies_input:  # what crossed the cut is kept by others: an in-place layer gets its own copy
            h = h.clone()
        for name, layer in zip(self.names, self.layers, strict=True):
            h = layer(h)
            if not isinstance(h, Tensor):
                raise CutError(
                    f"layer {name!r} ({type(layer).__name__}) returned a {type(h).__name__}; a layer of a chain "
                    f"must return one tensor: wrap it in a module that picks the tensor"
                )
        return h


def layers_of(model: Model) -> tuple[Layer, ...]:
    """Return a model's layers in order, `nn.Sequential`s inside it taken apart, named as in its state dict."""
    layers = [Layer(name, index, source) for index, (name, source) in enumerate(_walk("", _children(model)))]
    if not layers:
        raise CutError("the model has no layers")
    return tuple(layers)


def cut_model(model: Model, stages: int | None = None, *, at: Sequence[str | int] = (), seed: int = 0) -> list[Group]:
    """Cut a model into groups: into `stages` of equal length, or before each of the layers `at`."""
    layers = layers_of(model)
    if (stages is None) == (not at):
        raise CutError("say either into how many stages to cut the model, or before which layers")
    cut = cut_by_count(len(layers), stages) if stages is not None else cut_at([layer.name for layer in layers], at)
    return build_groups(layers, cut, seed=seed)


def build_groups(layers: Sequence[Layer], cut: Cut, *, seed: int = 0) -> list[Group]:
    """Build the groups of a cut, and check that no weight is shared between two of them."""
    if sum(cut) != len(layers):
        raise CutError(f"the cut {cut} places {sum(cut)} layers, the model has {len(layers)}")
    groups: list[Group] = []
    for size in cut:
        start = sum(len(group.names) for group in groups)
        members = layers[start : start + size]
        groups.append(Group([layer.name for layer in members], [layer.build(seed) for layer in members]))
    _refuse_tied_weights(groups)
    return groups


def _children(model: Model) -> Iterable[tuple[str, LayerSource]]:
    if isinstance(model, (nn.Sequential, nn.ModuleList)):
        return list(model.named_children())
    if isinstance(model, nn.Module) or not isinstance(model, Sequence):
        raise CutError(
            f"a {type(model).__name__} is not a chain of layers; pass an nn.Sequential, a list of layers, "
            f"or a list of functions that each make a layer"
        )
    return [(str(index), source) for index, source in enumerate(model)]


def _walk(prefix: str, children: Iterable[tuple[str, LayerSource]]) -> Iterator[tuple[str, LayerSource]]:
    for name, source in children:
        # a subclass of Sequential may have a forward of its own: it stays one layer
        if isinstance(source, nn.Sequential) and type(source) is nn.Sequential:
            yield from _walk(f"{prefix}{name}.", list(source.named_children()))
        elif callable(source):
            yield prefix + name, source
        else:
            raise CutError(f"layer {prefix + name!r} is a {type(source).__name__}, not a module or a function")


def _works_in_place(layer: nn.Module) -> bool:
    """Return whether the first thing that a layer does is declared to overwrite its input."""
    first = next(module for module in layer.modules() if next(module.children(), None) is None)
    return bool(getattr(first, "inplace", False))


def _refuse_tied_weights(groups: Sequence[Group]) -> None:
    owner: dict[int, tuple[int, str]] = {}
    for index, group in enumerate(groups):
        for name, weight in [*group.named_weights(), *group.named_states()]:
            if weight.numel() == 0 or weight.is_meta:
                continue
            first_index, first_name = owner.setdefault(weight.untyped_storage().data_ptr(), (index, name))
            if first_index != index:
                raise CutError(
                    f"{first_name!r} in stage {first_index} and {name!r} in stage {index} are one tied weight; "
                    f"keep both layers in one stage, or untie them with a copy of the weight"
                )
