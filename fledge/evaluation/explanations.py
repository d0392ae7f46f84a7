"""What the report says in words: each figure explained to someone who sees such a figure for the first time."""

from __future__ import annotations

from dataclasses import dataclass

OPENING = "This page follows one small language model from raw text to what it can do."

STEPS = {
    "pretrain": "It read text and learned to predict the next token (pretraining).",
    "sft": "It learned from questions with answers to reply in a conversation (supervised fine-tuning, SFT).",
    "dpo": "It learned from pairs of a good and a damaged answer to prefer the good one (direct preference optimisation, DPO).",
}
"""What a training stage does, by its name."""

HELD_OUT = "All scores below come from text and questions that were held out: the model was not trained on them."

SAMPLES = (
    "How the first of the models goes on, greedily, with the first lines of held-out documents: names it has not seen, in a style "
    "it should have learned.",
)

ANSWERS = (
    "Questions that were held out, answered greedily: at each step the most likely token is taken. These are the first ones of a "
    "random sample, not the best ones. A model of this size learns the form of an answer long before it learns the facts: "
    "expect sentences that sound right and are often wrong.",
)

PROMPTS = (
    "The prompts of the recipe, put to every model, greedily: one that has learned to answer answers, one that has not goes on with the "
    "text.",
)

COMPRESSION = (
    "Bits per byte says how many bits the text costs if the model's predictions are used to compress it. It is the one figure that "
    "does not depend on the tokenizer, and general compressors have it too: zlib (gzip) and xz see nothing but the held-out text; "
    "primed xz has read the training text first and may copy from it, so it shows how much of the held-out text repeats the "
    "training text. It is the strongest comparison here; a small model need not beat it.",
)

ABILITIES = (
    "Each line is a share with its 95 % interval: if the test were repeated with other samples of the same kind, a value outside "
    "the interval would be a surprise. The dashed tick is what guessing reaches. Where the interval includes the tick, the test does "
    "not show that the model can do this at all. The tests have the form of known benchmarks, but their text comes from this "
    "corpus: compare checkpoints of one corpus, not with published tables.",
)

BENCHMARKS = (
    "Benchmarks are published questions, put as lm-evaluation-harness puts them: these figures may be compared with published tables, "
    "if n is all of their questions."
)

TRAINING = (
    "The loss is the average surprise at the next token, in nats: 0 would be certainty. It should fall quickly, then slowly. "
    "Validation is measured on held-out text: if it rises while the training loss falls, the model learns the text by heart. "
    "During training it may be measured on part of the held-out text only.",
)

MEASURED = (
    "Benchmarks asked while it learned, the same questions every time. The band is the 95 % interval: it is wide, because few questions "
    "are asked, and where it holds the line of guessing nothing has been shown yet.",
)

WRITTEN = (
    "The same prompts again and again while it learned: first noise, then words, then sentences. Drawn at random with a seed of their "
    "own, as the recipe says; whitespace is made even.",
)

OTHERS = (
    "The same figures of other runs, as far as they are finished. Scores of different runs are comparable if they were measured on the "
    "same held-out text, which runs of one corpus share; `fledge evaluate` compares models on the same items and says which differences "
    "are more than chance. Curves are drawn over tokens, because steps may be of different size.",
)

USE = (
    "What the recipe asked for, and what was used. Tokens count every position that went through the model, padding included. What a "
    "training stage would take was expected before its first step: the time from two steps on trial, the memory from the shape of the "
    "model. Memory is that of the whole process or, on a GPU, what the training allocated there. A stage that was stopped and went on "
    "has no expected time.",
)

LINEAGE = (
    "What was made from what. Each id is a hash over what was asked for and every byte that came out, so an equal id is an equal "
    "result; `fledge verify` computes them again.",
)

SCORE_EXPLANATIONS = {
    "last_word": (
        "A passage ends in a word that occurs in it before; the model has to write exactly this word. "
        "Guessing means a random word of the passage, or always the most frequent last word."
    ),
    "yes_no": "A piece of documentation and the question whether it belongs to a given name, half of the time to another one.",
    "stop_rate": "Answers that the model ended by itself. A model that has not learned to stop runs on until it is cut off.",
    "format_rate": (
        "Answers that are one turn of the chat format: ended by the token that ends a turn, not empty, without control tokens, and "
        "without the beginning of another turn."
    ),
    "answer_choice": (
        "The right answer should be more likely after its own question than after another question: "
        "whether the question matters to the model at all."
    ),
    "reward_accuracy": (
        "Pairs in which preference training raised the good answer more than the damaged one, compared with the model before: "
        "its win rate. "
        "Below it the same for each kind of damage: an average can hide one that was not learned."
    ),
    "raw_accuracy": (
        "Pairs in which the good answer is simply more likely than the damaged one. A cut answer is shorter and so more likely from "
        "the start: read this beside the reward accuracy."
    ),
}

SCORE_CHARTS = (
    ("Language", ("last_word", "yes_no")),
    ("Conversation", ("stop_rate", "format_rate", "answer_choice")),
    ("Preferences", ("reward_accuracy", "raw_accuracy")),
)
"""Title of a chart, and the scores it shows."""


@dataclass(frozen=True)
class MetricsChart:
    """A chart of what was recorded during training."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    """(name in metrics.jsonl, name for people)"""
    y_label: str
    small: bool = False
    """Drawn beside others: for whoever asks why, not what."""
    divided_by: float = 1.0
    """Of the recorded figure, to come to the unit of the label."""


BITS_PER_BYTE = MetricsChart("bits per byte of held-out text", (("validation/bits_per_byte", "model"),), "bits per byte")

TRAINING_CHARTS = (
    MetricsChart("loss", (("train/loss", "training"), ("validation/loss", "validation")), "nats"),
    BITS_PER_BYTE,
    MetricsChart(
        "pairs in which the good answer gained",
        (("rewards/accuracies", "training"), ("validation/rewards/accuracies", "validation")),
        "share of pairs",
    ),
    MetricsChart(
        "log-probability of answers",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
        "nats",
        small=True,
    ),
    MetricsChart("learning rate", (("train/learning_rate", "learning rate"),), "learning rate", small=True),
    MetricsChart("gradient norm", (("train/gradient_norm", "gradient norm"),), "norm before clipping", small=True),
    MetricsChart("throughput", (("train/tokens_per_second", "throughput"),), "tokens per second", small=True),
    MetricsChart("memory at its peak", (("train/peak_memory_bytes", "memory"),), "GB", small=True, divided_by=1e9),
)

METRICS_EXPLANATIONS = {
    "dpo": (
        "Preference training begins at a loss of ln 2 = 0.693, where the model and its reference are the same; "
        "from there on a lower loss means a clearer preference."
    ),
}
