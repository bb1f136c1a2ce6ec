"""The LLM project: text in, a chatting model out."""
