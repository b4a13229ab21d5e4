"""So that `hubkit` and `wire` are found from every directory below."""
