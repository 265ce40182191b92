"""Fine-tuning: rows of tokens, packed sequences, adapters of PEFT, and the Trainer of transformers that trains them."""
