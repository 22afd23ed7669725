"""Is the learned proxy the bottleneck? Golden labels online, the proxy online, golden labels offline, at equal counts.

In ordinary reinforcement learning the true reward is at hand; in arXiv 2405.08448 both arms live on the same labelled
pairs (section 1). The opening study has all four cells of who writes and who labels, 32,000 labels each.
"""

from __future__ import annotations

from aligngap.hypotheses.base import Hypothesis
from aligngap.hypotheses.rules import ahead, share

BOTTLENECK = Hypothesis(
    name="bottleneck",
    question="How much of what online could gain is lost to its learned proxy, and does offline gain from its labels?",
    claim="Not tested: online learns from the proxy and offline from the golden model (section 4.1).",
    study="opening",
    rules=(
        ahead("proxy online", "online-golden", "online"),
        ahead("writing", "online-golden", "offline"),
        ahead("labels offline", "offline", "offline-proxy"),
        share("writer, proxy labels", ("online", "offline-proxy")),
    ),
)
