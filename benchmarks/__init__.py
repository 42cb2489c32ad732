"""What the provider costs, against what one would write without it, measured in the same run."""
