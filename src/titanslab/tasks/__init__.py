"""Tasks that measure memory: they make samples and training rows and score answers, and they import no model."""
