"""A Hugging Face folder as an int4 model for OpenVINO GenAI: ``python openvino_model.py FOLDER OUTPUT GROUP_SIZE``.

optimum-intel's export with NNCF's compression of weights, asymmetric int4 in groups for all layers but embedding and
head, which NNCF keeps in int8.
"""

import sys

from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer


def main(folder: str, output: str, group_size: str) -> None:
    grid = OVWeightQuantizationConfig(bits=4, sym=False, group_size=int(group_size), ratio=1.0)
    OVModelForCausalLM.from_pretrained(folder, export=True, quantization_config=grid).save_pretrained(output)
    import openvino

    tokenizer, detokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(folder), with_detokenizer=True)
    openvino.save_model(tokenizer, f"{output}/openvino_tokenizer.xml")
    openvino.save_model(detokenizer, f"{output}/openvino_detokenizer.xml")


if __name__ == "__main__":
    main(*sys.argv[1:])
