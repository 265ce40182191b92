"""A model's tokenizer and chat template, as transformers has them and as onnxruntime-genai reads them."""
