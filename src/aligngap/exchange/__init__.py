"""Models from and for other tools: T5X checkpoints come in, Hugging Face folders go out."""
