"""Collection of episodes: groups, filters, concurrency, and the bound on staleness."""
