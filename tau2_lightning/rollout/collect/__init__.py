"""Which episodes are played when: collectors, staleness, filters."""
