"""Key-value recall, the small task of the quickstart and of tests."""
