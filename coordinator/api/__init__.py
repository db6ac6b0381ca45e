"""What the command line does, over HTTP: tasks and tokens changed, everything else read. Its pages are OpenAPI."""
