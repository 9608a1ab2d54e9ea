"""Local servers: an OpenAI-compatible proxy in front of one provider or several."""
