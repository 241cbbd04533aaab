"""Servers elsewhere that speak OpenAI's API: how they are described, asked and read. Engine `remote` uses it."""
