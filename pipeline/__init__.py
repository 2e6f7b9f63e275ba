"""The algorithm of decoupled training, in pure torch: no processes, no input or output.

messages    what crosses a link                 signals     what a stage steps on, and its interface
cuts        where to cut a chain of layers      synthetic   a predictor's guess, BP(lambda)
groups      layers, and groups of them          probes      a local classifier's gradient
costs       what each layer takes               predictors  the networks that guess
stage       one step of one stage               quality     how good the guesses are
assembly    groups and a recipe -> stages       schedules   the order of actions, as data
randomness  draws keyed by (seed, stage, step)  reference   all stages in one process
devices     CPU or CUDA                         metrics     numbers that judge an output
finite      NaN and infinity                    errors      the tree of exceptions
"""

from .assembly import Recipe, assemble, outputs
from .costs import LayerCost, balance_model, measure_costs
from .cuts import Cut, cut_at, cut_by_cost, cut_by_count
from .devices import parse_device
from .errors import (
    CutError,
    LabelError,
    MessageError,
    NonFiniteError,
    StepaheadError,
    TrainingError,
    UsageError,
)
from .groups import Group, Layer, build_groups, cut_model, layers_of
from .messages import Activation, Gradient, GradientKind, Mark, MarkKind, Message, TensorSpec, edge_name
from .metrics import accuracy
from .predictors import MLP, Conv, Linear, LowRank, Predictor, Token, make_predictor
from .probes import Probe, probe
from .quality import Quality, QualityReading
from .randomness import keyed, seed_for
from .reference import Reference, StepReport
from .schedules import exact_lag, free_lag, schedule
from .signals import Locked, Loss, Needs, Signal, Silent, locked, silent
from .stage import Stage, StageStatistics
from .synthetic import Blend, Synthetic, blend, synthetic

__all__ = [
    "MLP",
    "Activation",
    "Blend",
    "Conv",
    "Cut",
    "CutError",
    "Gradient",
    "GradientKind",
    "Group",
    "LabelError",
    "Layer",
    "LayerCost",
    "Linear",
    "Locked",
    "Loss",
    "LowRank",
    "Mark",
    "MarkKind",
    "Message",
    "MessageError",
    "Needs",
    "NonFiniteError",
    "Predictor",
    "Probe",
    "Quality",
    "QualityReading",
    "Recipe",
    "Reference",
    "Signal",
    "Silent",
    "Stage",
    "StageStatistics",
    "StepReport",
    "StepaheadError",
    "Synthetic",
    "TensorSpec",
    "Token",
    "TrainingError",
    "UsageError",
    "accuracy",
    "assemble",
    "balance_model",
    "blend",
    "build_groups",
    "cut_at",
    "cut_by_cost",
    "cut_by_count",
    "cut_model",
    "edge_name",
    "exact_lag",
    "free_lag",
    "keyed",
    "layers_of",
    "locked",
    "make_predictor",
    "measure_costs",
    "outputs",
    "parse_device",
    "probe",
    "schedule",
    "seed_for",
    "silent",
    "synthetic",
]
