"""Olive's GPTQ, 4 bits asymmetric in groups of 32, head and embedding rounded to 8 bits, as an onnxruntime-genai
folder.

``python olive_gptq.py SOURCE CALIBRATION.npy OUT [PASS ...]``, in Olive's environment; token ids [windows, tokens].
With names of passes, such as gptq, only these run: then the folder holds what they give.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from olive.data.registry import Registry
from olive.workflows import run

GRID = {"group_size": 32, "sym": False}


class Windows(torch.utils.data.Dataset):
    """Token ids as the pairs (inputs, label) that Olive reads."""

    def __init__(self, ids: np.ndarray):
        self.ids = torch.from_numpy(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], int]:
        return {"input_ids": self.ids[index], "attention_mask": torch.ones_like(self.ids[index])}, 0


@Registry.register_dataset("calibration_windows")
def calibration_windows(file: str, **_: object) -> Windows:
    return Windows(np.load(file))


def main(source: str, calibration: str, out: str, *only: str) -> None:
    data = {
        "name": "calibration",
        "load_dataset_config": {"type": "calibration_windows", "params": {"file": calibration}},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1}},
    }
    passes = {
        "gptq": {"type": "Gptq", "bits": 4, **GRID, "data_config": data},
        "rest": {"type": "Rtn", "bits": 8, **GRID, "lm_head": True, "embeds": True},
        "onnx": {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32, "int4_accuracy_level": 4},
    }
    cpu = {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}
    result = run(
        {
            "input_model": {"type": "HfModel", "model_path": source, "task": "text-generation"},
            "systems": {"here": cpu},
            "host": "here",
            "target": "here",
            "passes": {name: passes[name] for name in only or passes},
            "output_dir": out,
            "cache_dir": str(Path(out).parent / "olive_cache"),
            "log_severity_level": 1,
        }
    )
    if not result.has_output_model():
        sys.exit("Olive gave no model")


if __name__ == "__main__":
    main(*sys.argv[1:])
