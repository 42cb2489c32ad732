"""The provider's cost against that of the code one would write without it, measured in the same run."""
