"""Tokenizers and vocabularies, as other libraries keep them beside their weights."""
