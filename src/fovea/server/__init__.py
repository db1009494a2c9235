"""The HTTP face: an OpenAI-compatible server. It never loads torch; the engine is another process."""
