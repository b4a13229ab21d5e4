"""How alike adapters are: `verb.compare`, its figures, its picture."""
