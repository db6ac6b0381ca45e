"""The agent at work: what it decides (pure), what carries that out, its link, its tasks and its releases."""
