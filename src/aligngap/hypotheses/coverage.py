"""H1, data coverage: does offline training close the gap once it has the online run's own data?

arXiv 2405.08448, section 5.1, Figures 3, 4 and 13 (App. G). Beside the paper's arms stands the cell it lacks: the
shuffled online data relabelled by the golden model, and an order that keeps the sequence inside blocks of batches but
not that of the blocks: is it the fine or the coarse order of the online data that counts?
"""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import ahead, same, share

COVERAGE = Hypothesis(
    name="coverage",
    question="Is online ahead because its data cover more? Does offline training on the same pairs close the gap?",
    claim="Rejected for IPO: with the online data, shuffled, offline training stays far behind online (Fig. 4).",
    study="coverage",
    rules=(
        share("H1", ("shuffled", "offline"), "The same coverage closes little of the gap (Fig. 4)."),
        same("R3", "twin", "online", "The online data in their order reproduce the online run (App. F)."),
        ahead("R4 shuffled", "online", "shuffled", "Uniformly shuffled online data stay far below online (Fig. 4)."),
        same("R4 window", "window-2", "online", "Shuffled in small windows they equal online (Fig. 13)."),
        ahead("order reversed", "shuffled", "reversed"),
        ahead("order fine", "blocks-32", "shuffled"),
        ahead("order coarse", "window-32", "blocks-32"),
        ahead("labels shuffled", "shuffled-golden", "shuffled"),
    ),
    shows=("window-8",),
)
