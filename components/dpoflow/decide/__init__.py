"""Whether there is something to learn since the champion."""
