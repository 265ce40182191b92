"""A model as MLflow loads it: a folder with MLmodel, its requirements, the model and the code that answers.

The format: https://mlflow.org/docs/latest/ml/model/ (a python_function with a loader module).
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from coldpress.packaging.archive import Content
from coldpress.serving import prompts

_LOADER = Path(__file__).with_name("mlflow_loader.py")
_ARRAYS = Path(__file__).with_name("serve.py")


def content(model: Content, requirements: str, chats: bool) -> Content:
    """What lies in the folder. ``model``: the files of the model by name."""
    import yaml

    python = platform.python_version()
    dependencies = [line for line in requirements.splitlines() if line and not line.startswith("#")]
    flavour: dict[str, Any] = {
        "loader_module": _LOADER.stem,
        "data": "data",
        "code": "code",
        "python_version": python,
        "env": {"virtualenv": "python_env.yaml"},
    }
    described: dict[str, Any] = {"flavors": {"python_function": flavour}}
    if chats:
        described["signature"] = _signature()
    environment = {"python": python, "dependencies": ["-r requirements.txt"]}
    code = (_LOADER, _ARRAYS, Path(prompts.__file__))
    return {
        "MLmodel": yaml.safe_dump(described, sort_keys=False),
        "python_env.yaml": yaml.safe_dump(environment, sort_keys=False),
        "requirements.txt": "\n".join([*dependencies, "mlflow"]) + "\n",
        **{f"code/{file.name}": file for file in code},
        **{f"data/{name}": file for name, file in model.items()},
    }


def _signature() -> dict[str, str]:
    """Questions in, answers out; the adapter and the length may be left out."""
    columns = [("prompt", "string", True), ("adapter", "string", False), ("max_new_tokens", "long", False)]
    inputs = [{"name": name, "type": kind, "required": required} for name, kind, required in columns]
    return {"inputs": json.dumps(inputs), "outputs": json.dumps([{"name": "text", "type": "string", "required": True}])}
