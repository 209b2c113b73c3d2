"""One training step on a model small enough to see through: what the parts of jaxalign are, and how they fit together.

    python examples/one_step.py

A random Llama of four layers, whose tokens are bytes: nothing is fetched or written. Shapes: B rows, T positions,
L layers, D width, V vocabulary.
"""

import jax
import numpy as np

from jaxalign.configuration import config_with
from jaxalign.data.batches import fit_pairs, training_plan
from jaxalign.model.config import ModelConfig
from jaxalign.model.readout import label_masses, pad_label_sets
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import make_mesh
from jaxalign.training import step
from jaxalign.training.optimizer import cosine_schedule, make_optimizer
from jaxalign.verbs.train import tuning_of

MODEL = ModelConfig(
    family="llama",
    vocab_size=256,
    width=64,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_dim=128,
    norm_eps=1e-5,
    query_scale=16**-0.5,
    rope_base=10_000.0,
    tied_head=False,
)
SETTINGS = {
    "lora": {"rank": 4},
    "batch": {"pairs_per_step": 4, "length": 64},
    "optimizer": {"learning_rate": 1e-2, "warmup_fraction": 0.0},
}
"""Other values of the keys of configs/base.py; `tuning_of` makes of them what training takes."""
END = 0
"""The end-of-text token; the others are the bytes of UTF-8."""
PAIRS = (("Sehr gut!", "Very good!"), ("Nicht gut.", "Not good."), ("很好!", "Very good!"), ("不好。", "Not good."))


def main() -> dict[str, float]:
    """The batch's loss before and after the step, and the masses on labels' first bytes."""
    settings = tuning_of(config_with(SETTINGS))

    # Pairs -> a plan of all steps; the batch is a function of the step, several pairs to a row.
    rendered = [(list(f"{prompt} English: ".encode()), [*response.encode(), END]) for prompt, response in PAIRS]
    pairs = fit_pairs(rendered, settings.layout.length, "drop").pairs
    plan = training_plan(pairs, settings.layout, epochs=1, steps=1, seed=0)
    rows = plan.rows_at(0)  # int32 arrays [B, T]

    # The decoder is pure; its adapters are a collection of their own beside the parameters, and B begins as 0.
    decoder = Decoder(MODEL, settings.lora)
    variables = decoder.init(jax.random.key(0), rows.tokens, rows.positions, rows.segment_ids)
    frozen, trainable = {"params": variables["params"]}, {"lora": variables["lora"]}

    # One update, compiled for a mesh: here of one device.
    schedule = cosine_schedule(settings.run.optimizer, plan.steps)
    optimizer = make_optimizer(settings.run.optimizer, schedule)
    shardings = step.make_shardings(trainable, frozen, optimizer, make_mesh(devices=jax.devices()[:1]))
    loss_sums = step.make_loss_sums(decoder, plan.targets_per_row, settings.run.step.loss_chunk)
    train_step = step.make_train_step(loss_sums, optimizer, schedule, shardings, settings.run.step)
    batch = step.place_batch(rows, shardings.batch)
    state, metrics = train_step(step.init_state(trainable, optimizer, shardings), frozen, batch)
    total, count = step.make_eval_loss(loss_sums, shardings)(state.trainable, frozen, batch)

    # A prompt, its label by the mass of the next token, and a layer through the tap: the last position's state.
    prompt = np.frombuffer(b"Sehr gut! English: ", np.uint8).astype(np.int32)[None]
    adapted = frozen | state.trainable
    positions = np.arange(prompt.shape[1], dtype=np.int32)[None]
    output = decoder.apply(
        adapted, prompt, positions, np.ones_like(prompt), tap=lambda layer, hidden, gate: hidden[:, -1]
    )
    labels = pad_label_sets([[ord("V")], [ord("N")]])
    logits = decoder.apply(adapted, output.hidden[:, -1], method="logits")  # float32 [1, V]
    masses = label_masses(logits, labels)[0]

    # The logit lens is the same readout of an earlier layer: output.taps [L, 1, D].
    early = decoder.apply(adapted, decoder.apply(adapted, output.taps[1], method="final_norm"), method="logits")
    return {
        "loss": float(metrics.loss),
        "loss after the step": float(total / count),
        "mass on V": float(masses[0]),
        "mass on N": float(masses[1]),
        "mass on V, as layer 2 has it": float(label_masses(early, labels)[0, 0]),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.4f}")
