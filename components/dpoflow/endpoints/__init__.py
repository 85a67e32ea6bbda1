"""OpenAI-compatible servers: asked with patience, within limits, and never twice for one answer."""
