"""herder builds Llama 3-class language models from end to end (specification: "The Llama 3 Herd of Models")."""

__version__ = "0.1.0"
