"""Studies: a TOML file describes the models of a table and their questions; a runner trains, evaluates and tables."""
