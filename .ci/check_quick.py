"""Fails where the main job's numbers on unseen phantoms miss what the README promises."""

import json
import sys

BOUNDS = {
    "test/mean_auc": (">=", 0.95),
    "test/mse": ("<=", 0.8),
    "test/lesion_dice": (">=", 0.35),
    "test/pointing": (">=", 0.85),
}

with open(sys.argv[1], encoding="utf-8") as file:
    metrics = json.load(file)["metrics"]
failed = False
for name, (sign, bound) in BOUNDS.items():
    value = metrics[name]["value"]
    good = value is not None and (value >= bound if sign == ">=" else value <= bound)
    failed |= not good
    print(f"{name} {value:.4f} {sign} {bound} {'holds' if good else 'FAILS'}")
sys.exit(failed)
