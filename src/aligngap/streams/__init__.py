"""Where the pairs come from: the one thing in which online and offline alignment differ.

A stream answers `draw(n, sampler)` with n labelled pairs. `OnPolicy` has the current policy write them and a judge
label them, `sync_every` batches at a time: 1 is online, the whole run is offline from the SFT policy, in between is
semi-online. `Dataset` and `Replay` serve a fixed list (a labelled data set, a recording) in a stated order. `Mixture`
draws from two, `Buffer` from the last batches that another has served. A stream's whole state, what it wrote ahead
included, is `state_dict()`, so a run can be killed anywhere.

What this module leaves out: training (`fit.py`) and the reference's log-probabilities, which are a property of the
pair and not of where it came from (`fit.with_reference`).
"""

from aligngap.streams.around import Buffer, Mixture, Relabelled, Retrained, Stopwatch, dropped_by
from aligngap.streams.fixed import Dataset, Epochs, Replay, order_of
from aligngap.streams.labels import PROMPTS_AT_ONCE, judge_pairs, label, round_robin, standardise
from aligngap.streams.on_policy import OnPolicy

__all__ = [
    "PROMPTS_AT_ONCE",
    "Buffer",
    "Dataset",
    "Epochs",
    "Mixture",
    "OnPolicy",
    "Relabelled",
    "Replay",
    "Retrained",
    "Stopwatch",
    "dropped_by",
    "judge_pairs",
    "label",
    "order_of",
    "round_robin",
    "standardise",
]
