"""Texts: rows of data sets, chats, windows of tokens, and the texts that coldpress ships."""
