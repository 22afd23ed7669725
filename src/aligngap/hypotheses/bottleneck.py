"""What is gained by writing anew, what is lost to the learned proxy, and what golden labels are worth offline.

In ordinary reinforcement learning the true reward is at hand; in arXiv 2405.08448 both arms live on the same labelled
pairs (section 1) and differ in who writes and in who labels. The opening study has all four cells, 32,000 labels each.
The primary contrast has one judge in both arms: online-golden - offline; then what the proxy costs. Beside each stands
the same by the true preference, where the task has one.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import ahead, share

BOTTLENECK = Hypothesis(
    name="bottleneck",
    question="With one judge in both arms, is online ahead? How much is lost to its learned proxy?",
    claim="Not tested: online learns from the proxy and offline from the golden model (section 4.1).",
    study="opening",
    rules=(
        ahead("writing", "online-golden", "offline"),
        ahead("writing truth", "online-golden", "offline", score="oracle_win"),
        ahead("proxy online", "online-golden", "online"),
        ahead("proxy online truth", "online-golden", "online", score="oracle_win"),
        ahead("labels offline", "offline", "offline-proxy"),
        share("writer, proxy labels", ("online", "offline-proxy")),
    ),
)
