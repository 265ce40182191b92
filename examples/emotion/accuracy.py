"""How often the model names the right tone: before training, after it, and after rounding to int4.

Runs the passes of the configuration as far as each line says. What was done before is found in the cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import coldpress
from coldpress.workflow.file import load_metrics

FOLDER = Path("models/emotion")
AS_IT_IS = {"type": "ModelBuilder", "config": {"precision": "fp32"}}


def main(file: str = "emotion.json") -> None:
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    tuned = {name: config["passes"][name] for name in ("lora", "merge_adapter_weights")}
    stages = {"before": {"builder": AS_IT_IS}, "tuned": tuned, "int4": config["passes"]}
    for name, passes in stages.items():
        coldpress.run(stage(config, name, passes), overwrite=True)
    models = [str(FOLDER / name) for name in stages]
    for model in coldpress.evaluate(*models, metrics=("size", *load_metrics("accuracy.yaml"))):
        size_mb = model["size"]["model_bytes"] / 1e6
        print(f"{model['name']:<22} {model['accuracy']['exact_match']:6.1%} right  {size_mb:6.0f} MB")


def stage(config: dict[str, Any], name: str, passes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with these passes, and an output folder of its own."""
    return {**config, "passes": passes, "engine": {**config["engine"], "output_dir": str(FOLDER / name)}}


if __name__ == "__main__":
    main(*sys.argv[1:])
