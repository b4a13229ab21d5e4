"""What a fine-tuning changed, as an adapter: `verb.extract` over two checkpoints."""
