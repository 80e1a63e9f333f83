"""One run: its plan, its fine-tuned models, its training and its evaluation."""
