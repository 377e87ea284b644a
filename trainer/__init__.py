"""From records to a better student: recipes, training and evaluation."""
