"""Models as they lie in folders and files: checkpoints, formats, tokenizers, adapters. Nothing here runs a network."""
