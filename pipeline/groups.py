"""Layers and groups: a user's model as a chain of named layers, and the groups of layers that stages run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from .bundles import Bundle
from .cuts import Cut, cut_at, cut_by_count
from .errors import CutError
from .randomness import keyed

__all__ = [
    "Group",
    "Layer",
    "Layout",
    "Model",
    "Wiring",
    "build_group",
    "build_groups",
    "check_cut",
    "cut_model",
    "evaluating",
    "joined_in",
    "layers_of",
    "works_in_place",
]

LayerSource = nn.Module | Callable[[], nn.Module]


class Layout(ABC):
    """A model that is no chain, and lays itself out as one."""

    @abstractmethod
    def layers(self, example: Tensor | None) -> tuple[Layer, ...]:
        """Return its layers in order; an example of the raw batch shows what they put out."""


class Wiring(Protocol):
    """How the layers of a model that is no chain hang together."""

    def group(self, start: int, names: Sequence[str], modules: Sequence[nn.Module]) -> Group:
        """Return a group of the layers from a position on."""
        ...


Model = nn.Module | Sequence[LayerSource] | Layout
"""What a user brings: an `nn.Sequential`, a list of layers, or of functions that each make a layer, or a `Graph`."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model: built already, or to be built by whoever runs it."""

    name: str
    index: int
    source: LayerSource
    wiring: Wiring | None = None
    """Of a layer that takes more than what the one before it puts out."""
    joined: str = ""
    """Why there can be no cut before it, if so."""

    def build(self, seed: int) -> nn.Module:
        """Return the layer; one that is built here draws its weights from a stream of its own."""
        if isinstance(self.source, nn.Module):
            return self.source
        with keyed(seed, "layer", self.index):
            try:
                module: object = self.source()
            except TypeError as error:
                raise CutError(f"the factory of layer {self.name!r} cannot be called: {error}") from error
        if not isinstance(module, nn.Module):
            raise CutError(f"the factory of layer {self.name!r} made a {type(module).__name__}, not a module")
        return module


class Group(nn.Module):
    """Consecutive layers of a model: what one stage runs."""

    below: Bundle | None = None
    """The values that it passes on together, where there may be several."""
    has_node_losses: bool = False
    """Whether layers of it have losses of their own."""

    def __init__(self, names: Sequence[str], layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.layers = nn.ModuleList(layers)
        self._copies_input = works_in_place(self.layers[0])

    def take_node_losses(self) -> list[tuple[Callable[..., Tensor], Tensor]]:
        """Return the losses of layers' own, each with what it judges, of the batch that was run last; good once."""
        return []

    def for_outputs(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a loss or a metric as a function of what the group puts out."""
        return function

    @property
    def title(self) -> str:
        """The first and the last layer's name, for messages to people."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]}..{self.names[-1]}"

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters by the names that they have in the uncut model."""
        for name, layer in zip(self.names, self.layers, strict=True):
            yield from layer.named_parameters(prefix=name)

    def model_state(self) -> dict[str, Tensor]:
        """Return weights and buffers by the names that they have in the state dict of the uncut model."""
        state: dict[str, Tensor] = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            state |= layer.state_dict(prefix=f"{name}.")
        return state

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


@contextmanager
def evaluating(group: nn.Module) -> Generator[None]:
    """Hold a group in eval mode, without gradients; a layer that its user held in another mode gets that back."""
    modes = [(module, module.training) for module in group.modules()]
    group.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def layers_of(model: Model, example: Tensor | None = None) -> tuple[Layer, ...]:
    """Return a model's layers in order, `nn.Sequential`s inside it taken apart, named as in its state dict.

    Args:
        model: What a user brings.
        example: A raw batch; graphs need one.
    """
    if isinstance(model, Layout):
        return model.layers(example)
    layers = [Layer(name, index, source) for index, (name, source) in enumerate(_walk("", _children(model)))]
    if not layers:
        raise CutError("the model has no layers")
    return tuple(layers)


def cut_model(
    model: Model,
    stages: int | None = None,
    *,
    at: Sequence[str | int] = (),
    seed: int = 0,
    example: Tensor | None = None,
) -> list[Group]:
    """Cut a model into groups: into `stages` of equal length, or before each of the layers `at`."""
    layers = layers_of(model, example)
    if isinstance(at, str) or not isinstance(at, Sequence):
        raise CutError(f"the cut points are {at!r}; give a list of layers' names or numbers")
    if (stages is None) == (not at):
        raise CutError("say either into how many stages to cut the model, or before which layers")
    if stages is not None:
        cut = cut_by_count(len(layers), stages, joined_in(layers))
    else:
        cut = cut_at([layer.name for layer in layers], at)
    return build_groups(layers, cut, seed=seed)


def build_groups(layers: Sequence[Layer], cut: Cut, *, seed: int = 0) -> list[Group]:
    """Build the groups of a cut, and check that there can be such a cut, and that no weight is in two of them."""
    check_cut(layers, cut)
    groups = [build_group(layers, cut, index, seed=seed) for index in range(len(cut))]
    _refuse_tied_weights(groups)
    return groups


def joined_in(layers: Sequence[Layer]) -> list[bool]:
    """Return of each layer whether there can be no cut before it."""
    return [bool(layer.joined) for layer in layers]


def check_cut(layers: Sequence[Layer], cut: Cut) -> None:
    """Refuse a cut between layers that hang together."""
    for start in accumulate(cut[:-1]):
        if layers[start].joined:
            raise CutError(layers[start].joined)


def build_group(layers: Sequence[Layer], cut: Cut, index: int, *, seed: int = 0) -> Group:
    """Build one group of a cut, and none of the other groups' layers."""
    if sum(cut) != len(layers):
        raise CutError(f"the cut {cut} places {sum(cut)} layers, the model has {len(layers)}")
    start = sum(cut[:index])
    members = layers[start : start + cut[index]]
    names, modules = [layer.name for layer in members], [layer.build(seed) for layer in members]
    wiring = members[0].wiring
    return Group(names, modules) if wiring is None else wiring.group(start, names, modules)


def _children(model: Model) -> Iterable[tuple[str, LayerSource]]:
    if isinstance(model, nn.ModuleList) or _is_plain_chain(model):
        return _members(model)
    if isinstance(model, nn.Module) or not isinstance(model, Sequence):
        raise CutError(
            f"a {type(model).__name__} is not a chain of layers; pass an nn.Sequential, a list of layers, "
            f"or a list of functions that each make a layer"
        )
    return [(str(index), source) for index, source in enumerate(model)]


def _walk(prefix: str, children: Iterable[tuple[str, LayerSource]]) -> Iterator[tuple[str, LayerSource]]:
    for name, source in children:
        if _is_plain_chain(source):
            yield from _walk(f"{prefix}{name}.", _members(source))
        elif callable(source):
            yield prefix + name, source
        else:
            raise CutError(f"layer {prefix + name!r} is a {type(source).__name__}, not a module or a function")


def _is_plain_chain(module: object) -> TypeGuard[nn.Sequential]:
    """Return whether a module only runs its children in turn: not one with a forward of its own, or with hooks."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not any(getattr(module, kind, None) for kind in hooks)  # torch has no public way to ask


def _members(chain: nn.Module) -> list[tuple[str, LayerSource]]:
    """Return a chain's direct members; named_children() would leave out one that comes a second time."""
    modules = chain.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in modules if name and "." not in name]


def works_in_place(layer: nn.Module) -> bool:
    """Return whether the first thing that a layer does is declared to overwrite its input."""
    first = next(module for module in layer.modules() if next(module.children(), None) is None)
    return bool(getattr(first, "inplace", False))


def _refuse_tied_weights(groups: Sequence[Group]) -> None:
    owner: dict[int, tuple[int, str]] = {}
    for index, group in enumerate(groups):
        for name, weight in group.named_weights():
            if isinstance(weight, nn.UninitializedParameter):
                raise CutError(f"{name!r} has no shape yet; run a batch through the lazy model once before it is cut")
            if weight.numel() == 0 or weight.is_meta:
                continue
            first_index, first_name = owner.setdefault(weight.data_ptr(), (index, name))
            if first_index != index:
                raise CutError(
                    f"{first_name!r} in stage {first_index} and {name!r} in stage {index} are one tied weight; "
                    f"keep both layers in one stage, or untie them with a copy of the weight"
                )
