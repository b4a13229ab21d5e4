"""push and pull, through huggingface_hub; no HTTP of our own."""
