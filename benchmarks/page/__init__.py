"""What docs/results.md is made of: files of results, tables and pictures."""
