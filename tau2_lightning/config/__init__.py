"""Configuration as types: the schema, allocations, limits. Imports nothing above it."""
