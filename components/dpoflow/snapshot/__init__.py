"""The first step: pin data and model by content."""
