"""How deltas become one: a table of methods, and a file for each family of them."""
