"""Messages to tokens and back: rendering, tool-call parsing, streaming."""
