"""curves.png of a run: losses, true latency, the price of waiting, and how far each layer looks."""

import json
from pathlib import Path

import numpy as np

CURVES, LOG = "curves.png", "log.jsonl"


def draw_curves(run: Path) -> None:
    """Draws `run`/curves.png from `run`/log.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    steps = [record["step"] for record in records]
    figure, (losses, latency, spans) = plt.subplots(1, 3, figsize=(15, 3.8), layout="constrained")
    for key in ("rnnt", "ctc"):
        values = np.array([record[key] for record in records])
        width = max(1, min(50, len(values) // 10))
        losses.plot(steps, values, alpha=0.15, color="C0" if key == "rnnt" else "C1")
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        losses.plot(steps[width - 1 :], smooth, label=key, color="C0" if key == "rnnt" else "C1")
    losses.set(title="loss, nats per piece", xlabel="step", yscale="log")
    losses.legend()
    latency.plot(steps, [record["latency_ms"] for record in records], label="true latency, ms")
    price = latency.twinx()
    price.plot(steps, [record["price"] for record in records], color="C3", alpha=0.6)
    price.set_ylabel("price of a frame, nats per piece", color="C3")
    latency.set(title="mean latency, ms", xlabel="step")
    for number, shares in enumerate(records[-1]["spans"]):
        spans.plot(range(len(shares)), shares, marker=".", label=f"layer {number + 1}")
    spans.set(title="share of frames by span (last step)", xlabel="frames of 40 ms waited for")
    spans.legend()
    for axis in (losses, latency, spans):
        axis.grid(alpha=0.3)
    figure.savefig(run / CURVES, dpi=110)
    plt.close(figure)
