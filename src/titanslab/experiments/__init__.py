"""Studies: models of one table, trained and asked as one TOML file describes, resumed, tabled and drawn."""
