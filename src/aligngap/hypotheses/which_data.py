"""Which offline data help: nearness to the SFT policy, contrast between the two sides, or quality?

arXiv 2405.08448, section 6, Figure 12, as contrasts over fixed data sets that differ in who wrote the two responses.
The paper reads D_golden as SFT against SFT; here that set is also made, so that nearness is told from who wrote it.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import ahead, contrast

NEAR = {"sft-vs-sft": 0.5, "sft-vs-mid": 0.5, "mid-vs-final": -0.5, "final-vs-final": -0.5}

WHICH_DATA = Hypothesis(
    name="which-data",
    question="Which offline data help: responses near the SFT policy, contrast between the sides, or quality?",
    claim="Nearness to the SFT policy matters most; contrast alone and quality alone do not help (Fig. 12).",
    study="which-data",
    rules=(
        contrast(
            "R12", NEAR, "the mean of the sets with a side by the SFT policy minus that of the sets without",
            "At least one side by the SFT policy is what helps (Fig. 12).",
        ),
        ahead("contrast", "mid-vs-final", "final-vs-final", "Contrast alone does not help (section 6)."),
        ahead("own samples", "sft-vs-sft", "offline"),
        ahead("mixture", "final-and-data", "offline"),
    ),
)  # fmt: skip
