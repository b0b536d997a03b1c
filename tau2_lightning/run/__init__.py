"""From a command line to a checked configuration to Lightning objects.

``words`` are the overrides of a command line (``key=value``), as Hydra calls them.
"""
