"""From records to a better student: recipes, training by LLaMA-Factory, and evaluation."""
