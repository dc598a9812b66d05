"""Studies: many trainings and evaluations from one description, run, resumed, tabled and drawn."""
