"""From the rows of a whole split to numbers with intervals."""
