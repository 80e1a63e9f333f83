"""Students on the Hugging Face hub: their model cards, and their upload."""
