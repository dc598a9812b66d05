"""Language modelling and common sense: lm-eval's tasks in the columns of the paper's table."""
