"""The built-in experiments. Each is found through its entry point, as anybody's."""
