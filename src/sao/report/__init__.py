"""Results as text: one module for each, records in, the text that a command prints out."""
