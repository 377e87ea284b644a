"""Makes a better student from records: recipes, training by LLaMA-Factory, and evaluation."""
