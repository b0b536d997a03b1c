"""From a command line to a checked configuration to Lightning objects."""
