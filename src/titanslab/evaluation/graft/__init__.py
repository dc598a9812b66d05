"""Controls of a grafted memory: how much of the loss it lowers, and by what."""
