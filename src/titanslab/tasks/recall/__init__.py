"""Recall of facts in running text, the quickstart's task, and of key-value pairs without text."""
