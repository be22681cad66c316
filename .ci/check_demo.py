"""Fails unless the demo run reached a per-class F1 of 0.90, found every label and wrote all pictures."""

import json
import sys
from pathlib import Path

evaluation = Path(sys.argv[1]) / "evaluation"
metrics = json.loads((evaluation / "metrics.json").read_text())
print(f"demo: F1 {metrics['f1']:.4f}, N+ {metrics['n_plus']} of {metrics['num_labels']}")
if metrics["f1"] < 0.90 or metrics["n_plus"] != metrics["num_labels"]:
    sys.exit("the demo did not reach a per-class F1 of 0.90 with every label found")
for picture in ("predictions.png", "attention.png", "curves.png"):
    if (evaluation / picture).stat().st_size < 10_000:
        sys.exit(f"{picture} is empty")
