"""The algorithm of decoupled training, in pure torch: no processes, no input or output.

messages    what crosses a link                 signals     what a stage steps on, and its interface
cuts        where to cut a chain of layers      synthesis   a predictor's guess, BP(lambda)
groups      layers, and groups of them          probes      a local classifier's gradient
graphs      models that are no chain            parted      a guess for each of several values
nodes       of a graph, and their order         feedback    fixed maps of what comes from below
wires       what joins them, across cuts too
earlier     circles through time
names       of nodes' outputs
bundles     values that cross a cut together    labels      refused if unreadable; how many count
costs       what each layer takes
answers     what a stage tells the one above    critics     the slope of a learnt loss
hindsight   what is made of an earlier batch    predictors  the networks that guess
statistics  what a stage has done, in numbers   guessing    what those are made of
stage       one step of one stage               quality     how good the guesses are
truth       what it does with the truth         inputs      guesses of what comes from above
kept        batches whose gradient has not come
passes      a group forward and backward        intake      what a stage takes in from above
parts       of a step, to be timed
assembly    groups and a recipe -> stages       updates     parameters and their optimizer
randomness  draws keyed by (seed, stage, step)  schedules   the order of actions, as data
devices     CPU or CUDA                         reference   all stages in one process
recurrent   windows of a sequence           states      what recurrent cores carry
cells       cores of one step after the other
finite      NaN and infinity                    metrics     numbers that judge an output
optimizers  one for gradients that come late    locks       locked schedules with micro-batches
errors      the tree of exceptions
"""

from .answers import Answer
from .assembly import Recipe, assemble, example_outputs
from .bundles import Bundle, Value
from .cells import LayerNormLSTMCell, Unrolled
from .costs import LayerCost, balance_model, measure_costs
from .critics import Critic, Sobolev, critic, local_critic, sobolev
from .cuts import Cut, cut_at, cut_by_cost, cut_by_count
from .devices import parse_device
from .earlier import Earlier
from .errors import (
    CutError,
    FrameError,
    LabelError,
    LinkClosedError,
    LinkError,
    LinkTimeoutError,
    MessageError,
    NonFiniteError,
    PeerEndedError,
    PeerGoneError,
    StepaheadError,
    TrainingError,
    UsageError,
    WorkerLostError,
    did_you_mean,
)
from .feedback import (
    DirectFeedback,
    FeedbackAlignment,
    Kickback,
    direct_feedback,
    feedback_alignment,
    kickback,
)
from .graphs import Graph
from .groups import Group, Layer, Layout, Model, build_group, build_groups, check_cut, cut_model, joined_in, layers_of
from .guessing import Predictor
from .inputs import InputRecipe, SyntheticInput, synthetic_inputs
from .kept import Kept
from .locks import LOCKED, MICROBATCHED, check_microbatches, groups_a_stage, groups_of, owner_of
from .messages import Activation, Gradient, GradientKind, Mark, MarkKind, Message, TensorSpec, edge_name
from .metrics import Averages, Metric, accuracy, metrics_for
from .names import node_of
from .nodes import Node
from .optimizers import muon
from .parts import TAX, USEFUL, Part, Span
from .predictors import MLP, Conv, Linear, LowRank, PredictorRecipe, Softmax, Token, Whole, make_predictor
from .probes import Probe, probe
from .quality import Quality, QualityReading
from .randomness import keyed, seed_for
from .recurrent import Carried, Core, Recurrent, Window, forget_evaluation, recurrent_in
from .reference import Batch, LagMode, Reference, StepReport
from .schedules import exact_lag, free_lag, relayed_lag, schedule
from .signals import (
    Asking,
    Delayed,
    Locked,
    Loss,
    LossFunction,
    Needs,
    Signal,
    SignalRecipe,
    Silent,
    delayed,
    locked,
    silent,
)
from .stage import NonFinitePolicy, Stage
from .states import State
from .statistics import StageStatistics
from .synthesis import Blend, Synthetic, blend, synthetic
from .truth import KEEPS, RELAYS, USES, StageTruth, Truth, TruthUse
from .updates import LRScheduleRecipe, OptimizerRecipe, Updater
from .wires import Wires

__all__ = [
    "KEEPS",
    "LOCKED",
    "MICROBATCHED",
    "MLP",
    "RELAYS",
    "TAX",
    "USEFUL",
    "USES",
    "Activation",
    "Answer",
    "Asking",
    "Averages",
    "Batch",
    "Blend",
    "Bundle",
    "Carried",
    "Conv",
    "Core",
    "Critic",
    "Cut",
    "CutError",
    "Delayed",
    "DirectFeedback",
    "Earlier",
    "FeedbackAlignment",
    "FrameError",
    "Gradient",
    "GradientKind",
    "Graph",
    "Group",
    "InputRecipe",
    "Kept",
    "Kickback",
    "LRScheduleRecipe",
    "LabelError",
    "LagMode",
    "Layer",
    "LayerCost",
    "LayerNormLSTMCell",
    "Layout",
    "Linear",
    "LinkClosedError",
    "LinkError",
    "LinkTimeoutError",
    "Locked",
    "Loss",
    "LossFunction",
    "LowRank",
    "Mark",
    "MarkKind",
    "Message",
    "MessageError",
    "Metric",
    "Model",
    "Needs",
    "Node",
    "NonFiniteError",
    "NonFinitePolicy",
    "OptimizerRecipe",
    "Part",
    "PeerEndedError",
    "PeerGoneError",
    "Predictor",
    "PredictorRecipe",
    "Probe",
    "Quality",
    "QualityReading",
    "Recipe",
    "Recurrent",
    "Reference",
    "Signal",
    "SignalRecipe",
    "Silent",
    "Sobolev",
    "Softmax",
    "Span",
    "Stage",
    "StageStatistics",
    "StageTruth",
    "State",
    "StepReport",
    "StepaheadError",
    "Synthetic",
    "SyntheticInput",
    "TensorSpec",
    "Token",
    "TrainingError",
    "Truth",
    "TruthUse",
    "Unrolled",
    "Updater",
    "UsageError",
    "Value",
    "Whole",
    "Window",
    "Wires",
    "WorkerLostError",
    "accuracy",
    "assemble",
    "balance_model",
    "blend",
    "build_group",
    "build_groups",
    "check_cut",
    "check_microbatches",
    "critic",
    "cut_at",
    "cut_by_cost",
    "cut_by_count",
    "cut_model",
    "delayed",
    "did_you_mean",
    "direct_feedback",
    "edge_name",
    "exact_lag",
    "example_outputs",
    "feedback_alignment",
    "forget_evaluation",
    "free_lag",
    "groups_a_stage",
    "groups_of",
    "joined_in",
    "keyed",
    "kickback",
    "layers_of",
    "local_critic",
    "locked",
    "make_predictor",
    "measure_costs",
    "metrics_for",
    "muon",
    "node_of",
    "owner_of",
    "parse_device",
    "probe",
    "recurrent_in",
    "relayed_lag",
    "schedule",
    "seed_for",
    "silent",
    "sobolev",
    "synthetic",
    "synthetic_inputs",
]
