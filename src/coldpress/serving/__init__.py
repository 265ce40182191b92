"""Generating text with a pressed model: the engine, prompts, and a chat."""
