"""The columns of the record tables, each declared once with its type and its meaning."""

from __future__ import annotations

RECORDS_FORMAT = 1

#: what the values of the column `opponent` are called in sentences
OPPONENTS = {
    "golden_policy": "the golden policy",
    "sft": "the SFT policy",
    "chosen": "the data's chosen responses",
    "best_of_n": "the SFT policy's best of n",
}


#: thresholds c in nats at which a gain is split into what lies within the reference's reach and what lies beyond it
REACH = (2, 4, 6)
#: who evaluates: the golden judge, or, with a beginning of the column's name, the task's true preference
EVALUATORS = ("", "oracle_")

#: The gap's three quantities as columns for each threshold `c` and evaluator `who`, each with an error, NAME_se.
GAP_QUANTITIES = {
    "share_beyond_{c}": "share of own samples with a log-ratio g = log pi/pi_ref above c nats",
    "{who}within_{c}": "On_c, the mean of win - 1/2 where g <= c, and of 0 elsewhere",
    "{who}beyond_{c}": "Beyond_c, the same where g > c; the two sum to the win rate minus 1/2",
    "{who}mean_within_{c}": "mean of win - 1/2 over the own samples with g <= c; nan where there is none",
    "{who}mean_beyond_{c}": "the same over those with g > c",
    "{who}rho": "rho(g, q) on the reference's samples, q their win rate over further ones",
    "{who}slope": "rho sd(q), the gain per sqrt(2 KL) by the first-order law",
    "{who}ceiling": "gain of the best policy at this KL; nan where too few samples carry it",
    "{who}efficiency": "the win rate minus 1/2 as a share of that ceiling",
}

#: Columns of `records.parquet` beside the others, for the opponent `sft` only; nan in records made before they were.
GAP_COLUMNS: dict[str, tuple[str, str]] = {
    f"{pattern.format(who=who, c=c)}{end}": ("float", meaning if not end else "standard error over prompts")
    for pattern, meaning in GAP_QUANTITIES.items()
    for who in EVALUATORS
    for c in REACH
    for end in ("", "_se")
}

#: Columns of `records.parquet`: one row per checkpoint and opponent. name -> (dtype, meaning)
RECORD_COLUMNS: dict[str, tuple[str, str]] = {
    "study": ("str", "name of the study"),
    "arm": ("str", "name of the arm (a stream)"),
    "run": ("str", "unique name of the run: arm, hyper-parameters, seed"),
    "config": ("str", "the run's hyper-parameters without the seed, for instance `beta=0.1 learning_rate=1e-05`"),
    "seed": ("int", "seed of the run; the whole pipeline is repeated per seed"),
    "loss": ("str", "name of the loss"),
    "beta": ("float", "regularisation strength of the loss"),
    "learning_rate": ("float", "peak learning rate"),
    "step": ("int", "optimiser steps taken; 0 is the SFT policy, and left out of runs that start elsewhere"),
    "opponent": ("str", "whom the win rate is against: golden_policy, sft, chosen or best_of_n"),
    "kl_nats": (
        "float",
        "KL(policy || reference) per response: exact per token over the vocabulary, along own samples",
    ),
    "kl_nats_se": ("float", "standard error over prompts"),
    "kl_k1_nats": ("float", "mean log-ratio on own samples: the plain estimator of the same KL, for comparison"),
    "forward_kl_nats": ("float", "KL(reference || policy), exact per token, along the reference's samples"),
    "forward_kl_nats_se": ("float", "standard error over prompts"),
    "win_rate": ("float", "share of prompts won against the opponent by the golden judge, a tie counting one half"),
    "win_rate_se": ("float", "standard error over prompts"),
    "ties": ("int", "number of prompts on which the golden judge said tie"),
    "proxy_win_rate": ("float", "the same by the proxy judge"),
    "proxy_win_rate_se": ("float", "standard error over prompts"),
    "oracle_win_rate": ("float", "the same by the task's true preference, where the task has one (sandbox); else nan"),
    "oracle_win_rate_se": ("float", "standard error over prompts"),
    "proxy_agreement": (
        "float",
        "share of prompts on which proxy and golden judge say the same of policy and opponent",
    ),
    "prompts": ("int", "number of prompts behind the row"),
    "accuracy": ("float", "policy as pairwise classifier on held-out D_golden: share with log-ratio margin > 0"),
    "accuracy_se": ("float", "standard error over pairs"),
    "accuracy_pairs": ("int", "number of held-out pairs"),
    "chosen_log_ratio": ("float", "mean log pi/pi_ref of the golden winners of held-out D_golden, nats"),
    "chosen_log_ratio_se": ("float", "standard error over pairs"),
    "rejected_log_ratio": ("float", "the same of the losers"),
    "rejected_log_ratio_se": ("float", "standard error over pairs"),
    "length_tokens": ("float", "mean response length, EOS included"),
    "opponent_length_tokens": ("float", "the same of the opponent"),
    "entropy_nats": ("float", "mean entropy of the next-token distribution along own samples, per token"),
    "unended": ("float", "share of responses cut by the length limit"),
    "pairs_seen": ("int", "pairs trained on so far"),
    "pairs_distinct": ("int", "distinct pairs among them"),
    "responses_sampled": ("int", "responses generated for training so far"),
    "flops": (
        "float",
        "floating-point operations of training so far: 2 per weight and token of a forward pass, 4 more with gradient; "
        "policy, reference and judge, where their models run here; nan for runs made before this was counted",
    ),
    "age": (
        "float",
        "mean age of the pairs trained on since the checkpoint before: steps since they were written; nan where no "
        "training step's weights wrote them (a data set)",
    ),
    "age_max": ("float", "the largest age among them"),
    "lag_kl_nats": (
        "float",
        "KL(writer || policy) per response, the plain estimate on those pairs as they were trained on; nan unless "
        "`recipe.writer_logps` or the loss stores who wrote them",
    ),
    "dropped": ("float", "pairs discarded so far as too old (`drop_stale`), untrained"),
    "dropped_length_tokens": ("float", "mean response length of those, EOS included"),
    "trained_length_tokens": ("float", "mean response length of the pairs trained on since the checkpoint before"),
    "outcome": ("str", "`ok`, or what went wrong with the run, and at which step"),
    **GAP_COLUMNS,
}


#: Columns of `per_prompt.parquet`: one row per checkpoint, opponent and prompt; the same prompts in every arm.
PER_PROMPT_COLUMNS: dict[str, tuple[str, str]] = {
    "run": ("str", "as in records"),
    "arm": ("str", "as in records"),
    "seed": ("int", "as in records"),
    "step": ("int", "as in records"),
    "opponent": ("str", "as in records"),
    "prompt_id": ("str", "which prompt"),
    "win": ("float", "golden judge: 1 win, 0 loss, 0.5 tie"),
    "proxy_win": ("float", "proxy judge, likewise"),
    "oracle_win": ("float", "true preference, likewise; nan where there is none"),
    "kl_nats": ("float", "exact per-token KL along this prompt's own sample"),
    "log_ratio": ("float", "g = log pi/pi_ref of that sample, nats; nan in records made before it was kept"),
    "length_tokens": ("int", "length of the policy's response"),
    "opponent_length_tokens": ("int", "length of the opponent's response"),
}


#: Columns of `probe.parquet`: classifiers along a recorded run, one row per seed, checkpoint and classifier.
PROBE_COLUMNS: dict[str, tuple[str, str]] = {
    "seed": ("int", "as in records"),
    "recording": ("str", "the arm whose run wrote the pairs"),
    "step": ("int", "the checkpoint of that run near which they were written"),
    "classifier": (
        "str",
        "`proxy` (the labels the run learned from), `writer` (its policy at this step), `final`, or `judge`",
    ),
    "arm": (
        "str",
        "whose policy it is: the recorded arm for `writer`, any arm for `final`; a `judge` is this variant's proxy",
    ),
    "accuracy": ("float", "share of pairs on which it prefers the golden winner; a tie of its own counts one half"),
    "accuracy_se": ("float", "standard error over pairs"),
    "pairs": ("int", "pairs of which the golden judge prefers one side"),
    "ties": ("int", "pairs near this checkpoint left out, since the golden judge says tie"),
}


#: Columns of `samples.parquet`: text of a few prompts per checkpoint, for people to read.
SAMPLE_COLUMNS: dict[str, tuple[str, str]] = {
    "run": ("str", "as in records"),
    "arm": ("str", "as in records"),
    "seed": ("int", "as in records"),
    "step": ("int", "as in records"),
    "prompt_id": ("str", "which prompt"),
    "prompt": ("str", "its text"),
    "response": ("str", "the policy's response"),
    "ended": ("bool", "whether it closed with EOS"),
}


#: Columns of `best_of_n.parquet`: best-of-n of the SFT policy, one row per variant, seed, opponent and n.
BEST_OF_N_COLUMNS: dict[str, tuple[str, str]] = {
    "variant": ("str", "the variant with a task of its own whose SFT policy it is; empty for the study as it stands"),
    "seed": ("int", "as in records"),
    "opponent": ("str", "as in records"),
    "n": ("int", "responses of the SFT policy among which the proxy picks one"),
    "kl_nats": ("float", "ln n - (n-1)/n: an upper bound on the KL of best-of-n from the SFT policy"),
    "win_rate": ("float", "golden judge: mean over all subsets of n of the sampled responses; a tie counts one half"),
    "win_rate_se": ("float", "standard error over prompts"),
    "proxy_win_rate": ("float", "the same by the proxy judge, which also did the picking"),
    "proxy_win_rate_se": ("float", "standard error over prompts"),
    "prompts": ("int", "number of prompts behind the row"),
}


#: Columns of `ratings.parquet`: what people said, one row per rated pair and rater; identical responses, which nobody
#: is asked about, have no rater.
RATING_COLUMNS: dict[str, tuple[str, str]] = {
    "key": ("str", "the sheet's key, a file in the folder `ratings`"),
    "pair": ("str", "the pair's name on the sheet"),
    "rater": ("str", "who rated; empty where both responses are the same text, which is a tie"),
    "first": ("str", "the first arm"),
    "second": ("str", "the second arm"),
    "budget_nats": ("float", "KL at which the arms' responses were drawn"),
    "seed": ("int", "as in records"),
    "config": ("str", "as in records"),
    "prompt_id": ("str", "which prompt"),
    "first_step": ("int", "the checkpoint that wrote the first arm's response"),
    "second_step": ("int", "the same of the second arm"),
    "first_kl_nats": ("float", "KL of that checkpoint"),
    "second_kl_nats": ("float", "the same of the second arm"),
    "first_left": ("bool", "whether the first arm's response stood on the left"),
    "human": ("float", "what the rater said: 1 where the first arm's response is better, 0 the second's, 0.5 a tie"),
    "opponent": ("str", "against whom the golden judge compared both"),
    "judge": ("float", "the golden judge's verdict: win of the first arm's response minus win of the second's"),
}


#: Columns of `crossed.parquet`: win rates by every golden judge of a study, one row a checkpoint, opponent and judge.
CROSSED_COLUMNS: dict[str, tuple[str, str]] = {
    "run": ("str", "as in records"),
    "step": ("int", "as in records; the SFT policy, step 0, is left out"),
    "opponent": ("str", "as in records"),
    "evaluator": ("str", "whose golden judge: `golden`, the study's own, or a variant's name"),
    "win_rate": ("float", "share of prompts won by that judge, a tie counting one half"),
    "win_rate_se": ("float", "standard error over prompts"),
}
