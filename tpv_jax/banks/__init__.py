"""Banks: many prompts trained in one step on one frozen backbone."""
