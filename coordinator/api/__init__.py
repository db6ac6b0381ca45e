"""The REST API: what the command line shows and changes, over HTTP. Its reference is an OpenAPI document."""
