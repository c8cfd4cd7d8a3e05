"""What is particular to each family of models, one file per Hugging Face model_type."""
