"""The command line, one module a noun: thin, and what they import lazily keeps --help fast."""
