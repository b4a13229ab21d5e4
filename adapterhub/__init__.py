"""A registry for adapters: find them, merge them, know which base they belong to."""
